// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Calls credential helper programs with docker's protocol. Dropping the caller's future kills the helper, because a
//! helper may wait indefinitely for a person's input.

use std::{io, process::Stdio};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use super::credential::Credential;

/// Maximum bytes of a helper's response. Tokens have some KiB.
const RESPONSE_BYTES_MAX: u64 = 256 * 1024;

/// Asks a helper for the credentials of a server. Errors never quote the helper's output, which may contain a secret.
pub(super) async fn ask(mut helper: Command, server: &str) -> io::Result<Credential> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Response {
        username: SecretString,
        secret: SecretString,
    }
    helper.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = helper.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(server.as_bytes()).await?;
    }
    let mut content = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(RESPONSE_BYTES_MAX).read_to_end(&mut content).await?;
    }
    if !child.wait().await?.success() {
        return Err(io::Error::other("the helper failed, or it has no credentials for the server"));
    }
    let response = serde_json::from_slice(&content);
    let Response { username, secret } = response.map_err(|_| io::Error::other("invalid response"))?;
    Ok(match username.expose_secret() {
        "<token>" => Credential::IdentityToken(secret),
        _ => Credential::Password { user: username, password: secret },
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script, "helper"]);
        command
    }

    #[tokio::test]
    async fn helper_receives_the_server_and_returns_a_password_or_a_token() {
        let script = r#"read -r server; echo "{\"Username\":\"$1\",\"Secret\":\"$server\"}""#;
        let password = Credential::Password { user: "get".into(), password: "r.lan".into() };
        assert_eq!(ask(shell(script), "r.lan\n").await.unwrap(), password);
        let script = r#"echo '{"ServerURL":"","Username":"<token>","Secret":"wax"}'; cat >/dev/null"#;
        assert_eq!(ask(shell(script), "r.lan").await.unwrap(), Credential::IdentityToken("wax".into()));
    }

    #[tokio::test]
    async fn errors_of_failing_or_endless_helpers_hide_their_output() {
        for script in
            ["echo wax; exit 1", r#"echo '{"Username":"u","Secret":7,"wax":1}'"#, "exec yes wax", "echo '\"wax\"'"]
        {
            let fault = ask(shell(&format!("cat >/dev/null; {script}")), "r.lan").await.unwrap_err().to_string();
            assert!(!fault.contains("wax"), "{fault}");
        }
    }

    #[tokio::test]
    async fn helper_is_killed_with_its_caller() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let pid = async {
            loop {
                if let Ok(pid) = fs::read_to_string(&file)
                    && pid.ends_with('\n')
                {
                    break pid.trim().to_owned();
                }
                tokio::task::yield_now().await;
            }
        };
        let script = format!("echo $$ >{}; exec sleep 1000", file.display());
        let pid = tokio::select! {
            answer = ask(shell(&script), "r.lan") => panic!("{answer:?}"),
            pid = pid => pid,
        };
        while Path::new("/proc").join(&pid).exists() {
            tokio::task::yield_now().await;
        }
    }
}
