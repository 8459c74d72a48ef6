// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! A helper program for credentials, spoken to as docker speaks to it. It ends with the one who asks: it may wait for a
//! person, or for ever.

use std::{io, process::Stdio};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use super::credentials::Credential;

/// Bytes of an answer; tokens reach some KiB.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// Asks for the credentials of a server. No error repeats anything that the helper says, which may hold a secret.
pub(super) async fn ask(mut helper: Command, server: &str) -> io::Result<Credential> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
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
        stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut content).await?;
    }
    if !child.wait().await?.success() {
        return Err(io::Error::other("it has none, or failed"));
    }
    let answer = serde_json::from_slice(&content);
    let Answer { username, secret } = answer.map_err(|_| io::Error::other("its answer cannot be made out"))?;
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
    async fn a_helper_is_told_the_server_and_gives_a_password_or_a_token() {
        let script = r#"read -r server; echo "{\"Username\":\"$1\",\"Secret\":\"$server\"}""#;
        let password = Credential::Password { user: "get".into(), password: "r.lan".into() };
        assert_eq!(ask(shell(script), "r.lan\n").await.unwrap(), password);
        let script = r#"echo '{"ServerURL":"","Username":"<token>","Secret":"wax"}'; cat >/dev/null"#;
        assert_eq!(ask(shell(script), "r.lan").await.unwrap(), Credential::IdentityToken("wax".into()));
    }

    #[tokio::test]
    async fn a_helper_that_fails_or_talks_on_gives_nothing_and_nothing_is_repeated() {
        for script in
            ["echo wax; exit 1", r#"echo '{"Username":"u","Secret":7,"wax":1}'"#, "exec yes wax", "echo '\"wax\"'"]
        {
            let fault = ask(shell(&format!("cat >/dev/null; {script}")), "r.lan").await.unwrap_err().to_string();
            assert!(!fault.contains("wax"), "{fault}");
        }
    }

    #[tokio::test]
    async fn a_helper_ends_with_the_one_who_asks() {
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
