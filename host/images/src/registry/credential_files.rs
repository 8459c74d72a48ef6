// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads credentials from the files of `docker login` and `podman login`, and from credential helper programs.

use std::{
    fs::File,
    io::{self, BufReader, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde_json::{Map, Value};
use tokio::{process::Command, task::spawn_blocking, time::timeout};

use super::{credential::Credential, credential_helper};

/// Maximum bytes of a credentials file, which is read into memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Timeout of the search for credentials. A helper program may wait for a key store or a person, and is killed at the
/// timeout.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the first credentials for the registry in the files. Failures are only logged, because public images need no
/// credentials.
pub(super) async fn find(registry: &str, files: &[PathBuf]) -> Credential {
    let found = async {
        for file in files {
            if let Some(found) = in_file(file, registry).await {
                return found;
            }
        }
        Credential::None
    };
    timeout(HELPER_TIMEOUT, found).await.unwrap_or_else(|_elapsed| {
        tracing::warn!(registry, "timeout while reading the credentials of a registry");
        Credential::None
    })
}

async fn in_file(file: &Path, registry: &str) -> Option<Credential> {
    let path = file.to_owned();
    let content = match spawn_blocking(move || read(&path)).await.unwrap_or_else(|fault| Err(fault.into())) {
        Ok(content) => content,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return None,
        Err(fault) => {
            tracing::warn!(file = %file.display(), error = %fault, "failed to read a credentials file");
            return None;
        }
    };
    // docker stores the credentials of Docker Hub under an old address.
    let servers: &[&str] = match registry {
        "index.docker.io" => &["https://index.docker.io/v1/", "docker.io"],
        other => &[other],
    };
    for server in servers {
        match in_config(&content, server).await {
            Ok(Credential::None) => {}
            Ok(found) => return Some(found),
            Err(reason) => {
                tracing::warn!(file = %file.display(), server, reason, "failed to read the credentials of a registry");
            }
        }
    }
    None
}

/// Uses the server's helper, or else the server's entry, or else the default helper. The crate `docker_credential` gets
/// only the entries, because it would call a helper without a timeout.
async fn in_config(content: &[u8], server: &str) -> Result<Credential, String> {
    let unreadable = |_fault| CredentialRetrievalError::ConfigReadError.to_string();
    let mut config: Map<String, Value> = serde_json::from_slice(content).map_err(unreadable)?;
    let (server_helpers, default_helper) = (config.remove("credHelpers"), config.remove("credsStore"));
    let server_helper = server_helpers.as_ref().and_then(|helpers| helpers.get(server));
    if let Some(name) = helper_name(server_helper) {
        return ask(name, server).await;
    }
    let entries = Value::Object(config).to_string();
    match docker_credential::get_credential_from_reader(entries.as_bytes(), server) {
        Ok(DockerCredential::IdentityToken(token)) => Ok(Credential::IdentityToken(token.into())),
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(Credential::Password { user: user.into(), password: password.into() })
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => match helper_name(default_helper.as_ref()) {
            Some(name) => ask(name, server).await,
            None => Ok(Credential::None),
        },
        Err(fault) => Err(fault.to_string()),
    }
}

fn helper_name(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str).filter(|name| !name.is_empty())
}

async fn ask(name: &str, server: &str) -> Result<Credential, String> {
    let program = format!("docker-credential-{name}");
    credential_helper::ask(Command::new(&program), server).await.map_err(|fault| format!("{program}: {fault}"))
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    BufReader::new(File::open(file)?).take(FILE_BYTES_MAX).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    async fn look(registry: &str, contents: &[String]) -> Credential {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..contents.len()).map(|at| folder.path().join(at.to_string())).collect();
        for (file, content) in files.iter().zip(contents) {
            std::fs::write(file, content).unwrap();
        }
        find(registry, &files).await
    }

    fn auth(server: &str, user: &str) -> String {
        let auth = STANDARD.encode(format!("{user}:secret"));
        format!(r#"{{"auths":{{"{server}":{{"auth":"{auth}"}}}}}}"#)
    }

    fn password(user: &str) -> Credential {
        Credential::Password { user: user.into(), password: "secret".into() }
    }

    #[tokio::test]
    async fn first_file_with_the_registry_wins() {
        let files = ["{}".to_owned(), auth("r.lan:5000", "one"), auth("r.lan:5000", "two"), "nonsense".to_owned()];
        assert_eq!(look("r.lan:5000", &files).await, password("one"));
        assert_eq!(look("r.lan", &files).await, Credential::None);
        assert_eq!(look("r.lan:500", &files).await, Credential::None);
    }

    #[tokio::test]
    async fn docker_hub_is_found_by_all_its_names() {
        for server in ["https://index.docker.io/v1/", "docker.io", "index.docker.io"] {
            assert_eq!(look("index.docker.io", &[auth(server, "one")]).await, password("one"), "{server}");
        }
    }

    #[tokio::test]
    async fn server_helper_precedes_entry_and_entry_precedes_default_helper() {
        let and = |more: &str| auth("r.lan", "one").replacen('{', &format!("{{{more},"), 1);
        assert_eq!(look("r.lan", &[and(r#""credsStore":"missing""#)]).await, password("one"));
        assert_eq!(look("r.lan", &[and(r#""credHelpers":{"r.lan":"missing"}"#)]).await, Credential::None);
    }
}
