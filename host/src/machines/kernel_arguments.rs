// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The operator's arguments for the kernel's command line.

use std::{fmt, str::FromStr};

/// Maximum length in bytes. The kernel's limit is 2047 for the whole line, of which waggle and QEMU need about 600.
const BYTES_MAX: usize = 1024;

/// Arguments for the kernel's command line: one or more words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KernelArguments(String);

/// The text is not valid on a kernel's command line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be 1 to {BYTES_MAX} printable ASCII characters, without a word `--`, and with each quote closed")]
pub struct InvalidKernelArguments;

impl FromStr for KernelArguments {
    type Err = InvalidKernelArguments;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim_matches(' ');
        let is_printable = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        // The kernel passes the words after `--` to the agent instead. After an open quote, it would not see the
        // arguments that QEMU appends.
        let is_cut = text.split(' ').any(|word| word == "--") || text.matches('"').count() % 2 == 1;
        if text.is_empty() || text.len() > BYTES_MAX || !is_printable || is_cut {
            return Err(InvalidKernelArguments);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for KernelArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_arguments_are_printable_words() {
        let parse = |text: &str| text.parse::<KernelArguments>().map(|arguments| arguments.to_string());
        assert_eq!(parse(" noapictimer mitigations=off "), Ok("noapictimer mitigations=off".to_owned()));
        for text in ["", "  ", "a\nb", "a -- b", "a=\"b", "ü", &"a".repeat(1025)] {
            assert_eq!(parse(text), Err(InvalidKernelArguments), "{text:?}");
        }
    }
}
