// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! What an image's configuration asks for, checked: its environment, its working folder, its own agent.

use oci_spec::image::ImageConfiguration;

use super::limits::{ENV_BYTES_MAX, ENV_COUNT_MAX, PATH_BYTES_MAX};

/// The version of the agent's protocol that the image's agent speaks, in decimal.
const AGENT_PROTOCOL_LABEL: &str = "waggle.agent.protocol";
/// Where in the image its agent is.
const AGENT_PATH_LABEL: &str = "waggle.agent.path";

/// An agent that an image brings along.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageAgent {
    /// The protocol version that it speaks.
    pub protocol_version: u32,
    /// Its absolute path in the image: checked for length, NUL and `..`, not for existence.
    pub path: String,
}

/// An image's configuration cannot be used.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigFault {
    /// Too many variables.
    #[error("its environment has {count} variables, and at most {ENV_COUNT_MAX} are allowed")]
    TooManyVariables {
        /// How many.
        count: usize,
    },
    /// Too many bytes of variables.
    #[error("its environment has {bytes} bytes, and at most {ENV_BYTES_MAX} are allowed")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// A variable that no process can be given.
    #[error("its environment has the entry {entry:?}, which is not NAME=VALUE or contains a NUL")]
    NoVariable {
        /// The entry, cut to what fits on a line.
        entry: String,
    },
}

/// What is left of the configuration once it is checked.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Checked {
    pub(super) env: Vec<(String, String)>,
    pub(super) working_directory: Option<String>,
    pub(super) agent: Option<ImageAgent>,
}

pub(super) fn check(config: &ImageConfiguration) -> Result<Checked, ConfigFault> {
    let Some(asked) = config.config().as_ref() else { return Ok(Checked::default()) };
    let env = check_env(asked.env().as_deref().unwrap_or_default())?;
    let label = |key| asked.labels().as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let agent = check_agent(label(AGENT_PROTOCOL_LABEL), label(AGENT_PATH_LABEL));
    let working_directory = check_working_directory(asked.working_dir().as_deref());
    Ok(Checked { env, working_directory, agent })
}

/// The root is what build tools say where nobody said anything. One that makes no sense is no reason to refuse the
/// image: commands then start in the sandbox user's home, as they do where the folder is missing in the end.
fn check_working_directory(asked: Option<&str>) -> Option<String> {
    let asked = asked.filter(|path| !path.trim_matches('/').is_empty())?;
    if !is_absolute_path(asked) {
        tracing::warn!(
            path = shorten(asked),
            "the image's working directory makes no sense; commands start in the home"
        );
        return None;
    }
    Some(asked.to_owned())
}

fn check_env(entries: &[String]) -> Result<Vec<(String, String)>, ConfigFault> {
    if entries.len() > ENV_COUNT_MAX {
        return Err(ConfigFault::TooManyVariables { count: entries.len() });
    }
    let bytes = entries.iter().map(|entry| entry.len().saturating_add(1)).sum();
    if bytes > ENV_BYTES_MAX {
        return Err(ConfigFault::TooLarge { bytes });
    }
    let split = |entry: &String| match entry.split_once('=') {
        Some((name, value)) if !name.is_empty() && !entry.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        _ => Err(ConfigFault::NoVariable { entry: shorten(entry) }),
    };
    entries.iter().map(split).collect()
}

/// A label that does not fit is no reason to refuse the image: the host's agent serves it.
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
                "the image's agent labels make no sense; the host's agent will serve"
            );
            None
        }
    }
}

fn is_absolute_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= PATH_BYTES_MAX && !path.contains('\0')
}

/// Characters of a bad value that an error or a log line repeats.
const SHOWN_CHARS_MAX: usize = 200;

fn shorten(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_config(config: &serde_json::Value, expected: &Result<Checked, ConfigFault>) {
        let image = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
        });
        assert_eq!(check(&serde_json::from_value(image).unwrap()), *expected);
    }

    #[test]
    fn environment_and_agent_are_taken_over() {
        check_config(
            &serde_json::json!({
                "Env": ["PATH=/usr/bin:/bin", "EMPTY=", "A=b=c"],
                "WorkingDir": "/srv/app",
                "Labels": {"waggle.agent.protocol": "1", "waggle.agent.path": "/usr/lib/waggle/waggle-agent"},
            }),
            &Ok(Checked {
                env: [("PATH", "/usr/bin:/bin"), ("EMPTY", ""), ("A", "b=c")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .to_vec(),
                working_directory: Some("/srv/app".to_owned()),
                agent: Some(ImageAgent { protocol_version: 1, path: "/usr/lib/waggle/waggle-agent".to_owned() }),
            }),
        );
    }

    #[test]
    fn working_directories_that_make_no_sense_are_passed_over() {
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        for path in ["", "/", "//", "srv", "../srv", "/a\0b", &long] {
            check_config(&serde_json::json!({"WorkingDir": path}), &Ok(Checked::default()));
        }
    }

    #[test]
    fn agent_labels_that_make_no_sense_are_passed_over() {
        for (protocol, path) in [("one", "/a"), ("1", "a"), ("1", "/a/../b"), ("-1", "/a"), ("1", "/a\0")] {
            let labels = serde_json::json!({"waggle.agent.protocol": protocol, "waggle.agent.path": path});
            check_config(&serde_json::json!({"Labels": labels}), &Ok(Checked::default()));
        }
        check_config(&serde_json::json!({"Labels": {"waggle.agent.protocol": "1"}}), &Ok(Checked::default()));
    }

    #[test]
    fn what_no_process_can_be_given_is_refused() {
        for entry in ["PATH", "=x", "A=\0"] {
            let fault = ConfigFault::NoVariable { entry: entry.to_owned() };
            check_config(&serde_json::json!({"Env": [entry]}), &Err(fault));
        }
        check_config(
            &serde_json::json!({"Env": vec!["A=b"; 1025]}),
            &Err(ConfigFault::TooManyVariables { count: 1025 }),
        );
        let long = format!("A={}", "b".repeat(64 * 1024));
        check_config(&serde_json::json!({"Env": [long]}), &Err(ConfigFault::TooLarge { bytes: 64 * 1024 + 3 }));
    }
}
