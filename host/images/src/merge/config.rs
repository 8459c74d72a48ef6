// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Checks an image's configuration: the environment, the working directory, and the labels of the image's guest agent.

use oci_spec::image::ImageConfiguration;

use super::limits::{ENV_BYTES_MAX, ENV_COUNT_MAX, PATH_BYTES_MAX};

/// Label with the protocol version of the image's agent, in decimal.
const AGENT_PROTOCOL_LABEL: &str = "waggle.agent.protocol";
/// Label with the path of the image's agent.
const AGENT_PATH_LABEL: &str = "waggle.agent.path";

/// An image's own guest agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageAgent {
    pub protocol_version: u32,
    /// An absolute path in the image: checked for length, NUL and `..`, not for existence.
    pub path: String,
}

/// An image's configuration cannot be used.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigFault {
    #[error("its environment has {count} variables; at most {ENV_COUNT_MAX} are allowed")]
    TooManyVariables { count: usize },
    #[error("its environment has {bytes} bytes; at most {ENV_BYTES_MAX} are allowed")]
    TooLarge { bytes: usize },
    #[error("its environment has a variable with a NUL: {entry:?}; no program can be given such a variable")]
    NulInVariable {
        /// The entry, cut to `SHOWN_CHARS_MAX` characters.
        entry: String,
    },
}

/// The fields of a configuration that are used.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct CheckedConfig {
    pub(super) env: Vec<(String, String)>,
    pub(super) working_directory: Option<String>,
    pub(super) agent: Option<ImageAgent>,
}

pub(super) fn check(config: &ImageConfiguration) -> Result<CheckedConfig, ConfigFault> {
    let Some(config) = config.config().as_ref() else { return Ok(CheckedConfig::default()) };
    let env = check_env(config.env().as_deref().unwrap_or_default())?;
    let label = |key| config.labels().as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let agent = check_agent(label(AGENT_PROTOCOL_LABEL), label(AGENT_PATH_LABEL));
    let working_directory = check_working_directory(config.working_dir().as_deref());
    Ok(CheckedConfig { env, working_directory, agent })
}

/// Returns `None` for `/`, which build tools write if an image sets no working directory. An invalid directory is not
/// an error: commands then start in the sandbox user's home, as with a directory that does not exist.
fn check_working_directory(path: Option<&str>) -> Option<String> {
    let path = path.filter(|path| !path.trim_matches('/').is_empty())?;
    if !is_absolute_path(path) {
        tracing::warn!(
            path = shorten(path),
            "ignored the invalid working directory of an image; commands start in the home folder"
        );
        return None;
    }
    Some(path.to_owned())
}

fn check_env(entries: &[String]) -> Result<Vec<(String, String)>, ConfigFault> {
    if entries.len() > ENV_COUNT_MAX {
        return Err(ConfigFault::TooManyVariables { count: entries.len() });
    }
    let bytes = entries.iter().map(|entry| entry.len().saturating_add(1)).sum();
    if bytes > ENV_BYTES_MAX {
        return Err(ConfigFault::TooLarge { bytes });
    }
    if let Some(entry) = entries.iter().find(|entry| entry.contains('\0')) {
        return Err(ConfigFault::NulInVariable { entry: shorten(entry) });
    }
    Ok(entries.iter().filter_map(|entry| variable(entry)).collect())
}

/// Splits an entry into name and value. Returns `None` for an entry without a name or without `=`: it sets nothing, and
/// container engines run such images.
fn variable(entry: &str) -> Option<(String, String)> {
    let found = entry.split_once('=').filter(|(name, _)| !name.is_empty());
    if found.is_none() {
        tracing::warn!(entry = shorten(entry), "ignored an entry of an image's environment that is not NAME=VALUE");
    }
    found.map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// Returns `None` if the labels are missing or invalid. The host's agent is then used.
fn check_agent(protocol: Option<&str>, path: Option<&str>) -> Option<ImageAgent> {
    let (protocol, path) = (protocol?, path?);
    let has_parent = path.split('/').any(|component| component == "..");
    match protocol.parse() {
        Ok(protocol_version) if is_absolute_path(path) && !has_parent => {
            Some(ImageAgent { protocol_version, path: path.to_owned() })
        }
        _ => {
            tracing::warn!(
                protocol = shorten(protocol),
                path = shorten(path),
                "ignored the invalid agent labels of an image; using the host's agent"
            );
            None
        }
    }
}

fn is_absolute_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= PATH_BYTES_MAX && !path.contains('\0')
}

/// Maximum number of characters of an invalid value that an error or a log line quotes.
const SHOWN_CHARS_MAX: usize = 200;

fn shorten(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_config(config: &serde_json::Value, expected: &Result<CheckedConfig, ConfigFault>) {
        let image = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
        });
        assert_eq!(check(&serde_json::from_value(image).unwrap()), *expected);
    }

    #[test]
    fn accepts_environment_directory_and_agent() {
        check_config(
            &serde_json::json!({
                "Env": ["PATH=/usr/bin:/bin", "EMPTY=", "A=b=c"],
                "WorkingDir": "/srv/app",
                "Labels": {"waggle.agent.protocol": "1", "waggle.agent.path": "/usr/lib/waggle/waggle-agent"},
            }),
            &Ok(CheckedConfig {
                env: [("PATH", "/usr/bin:/bin"), ("EMPTY", ""), ("A", "b=c")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .to_vec(),
                working_directory: Some("/srv/app".to_owned()),
                agent: Some(ImageAgent { protocol_version: 1, path: "/usr/lib/waggle/waggle-agent".to_owned() }),
            }),
        );
    }

    #[test]
    fn ignores_root_and_invalid_working_directories() {
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        for path in ["", "/", "//", "srv", "../srv", "/a\0b", &long] {
            check_config(&serde_json::json!({"WorkingDir": path}), &Ok(CheckedConfig::default()));
        }
    }

    #[test]
    fn ignores_invalid_agent_labels() {
        for (protocol, path) in [("one", "/a"), ("1", "a"), ("1", "/a/../b"), ("-1", "/a"), ("1", "/a\0")] {
            let labels = serde_json::json!({"waggle.agent.protocol": protocol, "waggle.agent.path": path});
            check_config(&serde_json::json!({"Labels": labels}), &Ok(CheckedConfig::default()));
        }
        check_config(&serde_json::json!({"Labels": {"waggle.agent.protocol": "1"}}), &Ok(CheckedConfig::default()));
    }

    #[test]
    fn ignores_variables_without_name_or_value() {
        let env = vec![("A".to_owned(), "b".to_owned())];
        let expected = CheckedConfig { env, ..CheckedConfig::default() };
        check_config(&serde_json::json!({"Env": ["PATH", "=x", "", "=", "A=b", "B C"]}), &Ok(expected));
    }

    #[test]
    fn rejects_invalid_environments() {
        let fault = ConfigFault::NulInVariable { entry: "A=\0".to_owned() };
        check_config(&serde_json::json!({"Env": ["A=\0"]}), &Err(fault));
        check_config(
            &serde_json::json!({"Env": vec!["A=b"; 1025]}),
            &Err(ConfigFault::TooManyVariables { count: 1025 }),
        );
        let long = format!("A={}", "b".repeat(64 * 1024));
        check_config(&serde_json::json!({"Env": [long]}), &Err(ConfigFault::TooLarge { bytes: 64 * 1024 + 3 }));
    }
}
