// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Tests of the settings: flags, variables and defaults, in this order of precedence.

use std::ffi::OsString;

use super::*;
use crate::cli::{Command, parse};

fn read(flags: &[&str], variables: &[(&str, &str)]) -> Result<Settings, String> {
    let arguments = ["waggle", "serve"].iter().chain(flags).map(OsString::from);
    let lookup = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
    let command = parse(arguments, &lookup).map_err(|fault| fault.to_string())?.command;
    let Command::Serve(settings) = command else { panic!("{command:?} instead of serve") };
    Ok(*settings)
}

#[test]
fn defaults_are_as_documented() {
    let settings = read(&[], &[]).unwrap();
    assert_eq!(settings.listen_addr, "127.0.0.1:8080".parse().unwrap());
    assert_eq!((settings.max_environments, settings.default_cpus, settings.default_memory_mb), (10, 1, 512));
    assert_eq!((settings.default_timeout_min, settings.default_disk_mb, settings.log_level), (30, 4096, 0));
    let seconds = [
        settings.default_exec_timeout,
        settings.max_exec_timeout,
        settings.install_timeout,
        settings.boot_timeout,
        settings.reaper_interval,
        settings.image_store.image_cache_max_age,
    ]
    .map(|duration| duration.as_secs());
    assert_eq!(seconds, [30, 300, 300, 120, 60, 604_800]);
    assert_eq!(settings.backend, WantedBackend::Auto);
    assert_eq!((settings.saved.idle, settings.saved.on_stop), (AtEnd::Destroy, AtEnd::Destroy));
    let limits = settings.saved.limits(settings.image_store.reserve());
    assert_eq!((limits.per_owner, limits.bytes, limits.reserve.mib()), (10, 20 << 30, 1024));
    assert_eq!(limits.age, Duration::from_secs(30 * 24 * 60 * 60));
}

#[test]
fn clients_can_choose_no_larger_machines_unless_the_operator_says_so() {
    let sizes = read(&["--default-memory-mb", "1024"], &[]).unwrap().sizes();
    assert_eq!((sizes.max, sizes.max.memory_mib), (sizes.default, 1024));
    let variables = [("WAGGLE_MAX_CPUS", "4"), ("WAGGLE_MAX_MEMORY_MB", "2048"), ("WAGGLE_MAX_DISK_MB", "8192")];
    let sizes = read(&[], &variables).unwrap().sizes();
    assert_eq!(sizes.default, MachineSize { cpus: 1, memory_mib: 512, disk_mib: 4096 });
    assert_eq!(sizes.max, MachineSize { cpus: 4, memory_mib: 2048, disk_mib: 8192 });
}

#[test]
fn clients_with_tokens_choose_no_images_unless_the_operator_allows_them() {
    assert_eq!(read(&[], &[]).unwrap().allowed_images(), AllowedImages::any());
    let tokens = ["--auth-tokens-file", "tokens"];
    assert_eq!(read(&tokens, &[]).unwrap().allowed_images(), AllowedImages::none());
    let set = read(&tokens, &[("WAGGLE_ALLOWED_IMAGES", "any")]).unwrap();
    assert_eq!(set.allowed_images(), AllowedImages::any());
}

#[test]
fn flag_overrides_its_variable_and_the_variable_overrides_the_default() {
    let variables = [("WAGGLE_MAX_ENVIRONMENTS", "3"), ("WAGGLE_BOOT_TIMEOUT", "90s")];
    let settings = read(&["--max-environments", "4"], &variables).unwrap();
    assert_eq!((settings.max_environments, settings.boot_timeout.as_secs()), (4, 90));
}

#[test]
fn error_for_an_invalid_value_names_its_flag() {
    for (variable, value, flag) in [
        ("WAGGLE_LISTEN_ADDR", "nowhere", "--listen-addr"),
        ("WAGGLE_LISTEN_ADDR", "localhost2:1", "--listen-addr"),
        ("WAGGLE_MAX_ENVIRONMENTS", "0", "--max-environments"),
        ("WAGGLE_MAX_ENVIRONMENTS", "ten", "--max-environments"),
        ("WAGGLE_DEFAULT_MEMORY_MB", "1", "--default-memory-mb"),
        ("WAGGLE_MAX_MEMORY_MB", "127", "--max-memory-mb"),
        ("WAGGLE_MAX_MEMORY_MB", "256", "--max-memory-mb"),
        ("WAGGLE_MAX_CPUS", "17", "--max-cpus"),
        ("WAGGLE_MAX_DISK_MB", "4095", "--max-disk-mb"),
        ("WAGGLE_DEFAULT_EXEC_TIMEOUT", "30", "--default-exec-timeout"),
        ("WAGGLE_DEFAULT_EXEC_TIMEOUT", "6m", "--max-exec-timeout"),
        ("WAGGLE_DEFAULT_TIMEOUT_MIN", "61", "--default-timeout-min"),
        ("WAGGLE_RUNTIME_NODE_EXEC_COMMAND", "node", "--runtime-node-exec-command"),
        ("WAGGLE_IMAGE_NODE", "UPPER CASE", "--image-node"),
        ("WAGGLE_IMAGE_SHELL", "", "--image-shell"),
        ("WAGGLE_ALLOWED_IMAGES", "*", "--allowed-images"),
        ("WAGGLE_LOG_LEVEL", "6", "--log-level"),
        ("WAGGLE_BACKEND", "xen", "--backend"),
        ("WAGGLE_ON_STOP", "keep", "--on-stop"),
        ("WAGGLE_IDLE", "", "--idle"),
        ("WAGGLE_SAVED_MAX_GB", "0", "--saved-max-gb"),
        ("WAGGLE_SAVED_MAX_AGE", "30d", "--saved-max-age"),
    ] {
        let message = read(&[], &[(variable, value)]).unwrap_err();
        assert!(message.contains(flag) && message.contains(value), "{variable}={value}: {message}");
    }
}

#[test]
fn settings_hide_the_credentials_of_the_proxy() {
    let settings = read(&["--egress-proxy", "http://bee:honey@proxy.example:3128"], &[]).unwrap();
    let shown = format!("{settings:?} {settings:#?} {:?}", settings.proxy().unwrap());
    assert!(shown.contains("proxy.example") && shown.contains("REDACTED"), "{shown}");
    assert!(!shown.contains("bee") && !shown.contains("honey") && !shown.contains("YmVl"), "{shown}");
}

#[test]
fn error_for_an_invalid_proxy_names_flag_and_reason() {
    for (value, reason) in [
        ("https://bee:honey@h:1", "the URL does not begin with http://"),
        ("http://bee:honey@h", "the port is missing"),
        ("http://bee:honey@:1", "the host is missing"),
    ] {
        let message = read(&[], &[("WAGGLE_EGRESS_PROXY", value)]).unwrap_err();
        assert!(
            message.contains("invalid value for '--egress-proxy <URL>': ") && message.contains(reason),
            "{message}"
        );
        assert!(message.contains("http://USER:PASSWORD@HOST:PORT") && !message.contains("honey"), "{message}");
    }
}

#[test]
fn each_back_end_has_a_name() {
    use WantedBackend::{Auto, Krun, Msb, Qemu};

    for (name, backend) in [("auto", Auto), ("krun", Krun), ("msb", Msb), ("qemu", Qemu)] {
        assert_eq!(read(&[], &[("WAGGLE_BACKEND", name)]).unwrap().backend, backend);
    }
}

#[test]
fn accepts_go_style_addresses_without_an_ip() {
    let open = ["--listen-addr", ":80", "--auth-tokens-file", "tokens"];
    assert_eq!(read(&open, &[]).unwrap().listen_addr, "0.0.0.0:80".parse().unwrap());
    assert_eq!(read(&["--listen-addr", "localhost:1"], &[]).unwrap().listen_addr, "127.0.0.1:1".parse().unwrap());
}

#[test]
fn server_without_tokens_listens_only_on_loopback() {
    for address in ["127.0.0.1:80", "[::1]:80", "127.1.2.3:80"] {
        assert!(read(&["--listen-addr", address], &[]).is_ok(), "{address}");
    }
    for address in [":80", "192.0.2.1:80", "[::]:80"] {
        let message = read(&["--listen-addr", address], &[]).unwrap_err();
        assert!(message.contains("--auth-tokens-file"), "{message}");
        let file = [("WAGGLE_AUTH_TOKENS_FILE", "/etc/waggle/tokens")];
        assert!(read(&["--listen-addr", address], &file).is_ok(), "{address}");
        assert!(read(&["--listen-addr", address, "--stdio"], &[]).is_ok(), "{address}");
    }
}

#[test]
fn certificate_and_key_are_set_together() {
    for half in [["--tls-cert", "c"], ["--tls-key", "k"]] {
        let message = read(&half, &[]).unwrap_err();
        assert!(message.contains("--tls-cert (WAGGLE_TLS_CERT) and --tls-key (WAGGLE_TLS_KEY)"), "{message}");
    }
    let both = read(&["--tls-key", "k"], &[("WAGGLE_TLS_CERT", "c")]).unwrap();
    assert_eq!(both.access.tls(), Some((Path::new("c"), Path::new("k"))));
    assert_eq!(read(&[], &[]).unwrap().access.tls(), None);
}

#[test]
fn plain_text_beyond_loopback_gets_a_warning() {
    let tls = ["--tls-cert", "c", "--tls-key", "k"];
    let warning = |flags: &[&str], address: &str| {
        let flags = [&["--listen-addr", address, "--auth-tokens-file", "tokens"], flags].concat();
        read(&flags, &[]).unwrap().access.plain_text_warning(address.parse().unwrap())
    };
    for address in ["0.0.0.0:80", "192.0.2.1:80", "[::]:80", "[fd00::1]:80"] {
        let text = warning(&[], address).unwrap();
        assert!(text.contains(address) && text.contains("WAGGLE_TLS_CERT"), "{text}");
        assert_eq!((warning(&tls, address), warning(&["--stdio"], address)), (None, None), "{address}");
    }
    assert_eq!(
        [warning(&[], "127.0.0.1:80"), warning(&[], "[::1]:80"), warning(&tls, "127.0.0.1:80")],
        [None, None, None]
    );
}

#[test]
fn allowed_hosts_are_separated_by_commas() {
    let hosts = ["waggle.example", "192.0.2.1"];
    assert_eq!(read(&["--allowed-hosts", "waggle.example,192.0.2.1"], &[]).unwrap().access.allowed_hosts, hosts);
    let variable = [("WAGGLE_ALLOWED_HOSTS", "waggle.example,192.0.2.1")];
    assert_eq!(read(&[], &variable).unwrap().access.allowed_hosts, hosts);
    assert_eq!(read(&[], &[]).unwrap().access.allowed_hosts, [""; 0]);
}

#[test]
fn retired_setting_causes_a_warning() {
    let lookup = |name: &str| (name == "WAGGLE_SSH_PORT_BASE").then(|| OsString::from("2222"));
    assert_eq!(warnings(&lookup), ["WAGGLE_SSH_PORT_BASE no longer has an effect; unset it"]);
}

#[test]
fn folders_come_from_settings_then_xdg_then_home() {
    let home = |name: &str| (name == "HOME").then(|| OsString::from("/home/u"));
    let settings = read(&[], &[]).unwrap();
    let folders = settings.folders(&home).unwrap();
    assert_eq!(folders.data, Path::new("/home/u/.local/share/waggle"));
    assert_eq!(folders.images, Path::new("/home/u/.cache/waggle/images"));
    assert_eq!(folders.kernel, None);

    let xdg = |name: &str| (name == "XDG_DATA_HOME").then(|| OsString::from("/d"));
    let settings = read(&["--image-cache-dir", "/i", "--kernel", "/k"], &[]).unwrap();
    let folders = settings.folders(&xdg).unwrap();
    assert_eq!(folders, Folders { data: "/d/waggle".into(), images: "/i".into(), kernel: Some("/k".into()) });

    let fault = read(&[], &[]).unwrap().folders(&|_| None).unwrap_err();
    assert!(matches!(fault, FoldersFault::Unset { setting: "DATA_DIR" }), "{fault}");
}

#[test]
fn relative_folders_start_at_the_working_folder() {
    let settings = read(&["--data-dir", "d", "--image-cache-dir", "i", "--kernel", "k"], &[]).unwrap();
    let here = std::env::current_dir().unwrap();
    let folders = settings.folders(&|_| None).unwrap();
    assert_eq!(folders, Folders { data: here.join("d"), images: here.join("i"), kernel: Some(here.join("k")) });
}

#[test]
fn default_image_is_the_projects_own_if_it_was_built() {
    let settings = read(&[], &[("WAGGLE_IMAGE_SHELL", "oci:/x:latest")]).unwrap();
    let images = images(&settings, Path::new("/d"), &|folder| folder == Path::new("/d/images/python")).unwrap();
    assert_eq!(images.python.to_string(), "oci:/d/images/python");
    assert_eq!(images.node.to_string(), "docker.io/library/node:lts-slim");
    assert_eq!(images.shell.to_string(), "oci:/x:latest");
}

#[test]
fn help_names_every_variable() {
    // Long lines are wrapped.
    let help = read(&["--help"], &[]).unwrap_err().split_whitespace().collect::<Vec<_>>().join(" ");
    for row in settings_page().lines().filter(|line| line.starts_with("| `")) {
        let variable = row.split('`').nth(1).unwrap();
        assert!(help.contains(&format!("[env: {variable}]")), "{variable}");
    }
}
