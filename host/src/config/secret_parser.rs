// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Parses arguments that may contain a secret.

use std::{error::Error, ffi::OsStr, marker::PhantomData, str::FromStr};

use clap::{Arg, Command, builder::TypedValueParser, error::ErrorKind};
use waggle_shared::causes::chain;

/// A parser with an error that does not repeat the value. The errors of clap's own parsers repeat the value.
#[derive(Debug)]
pub struct SecretParser<T>(PhantomData<fn() -> T>);

impl<T> SecretParser<T> {
    /// The parser. It calls [`FromStr`] of `T`. The error of [`FromStr`] must not repeat the value.
    pub const NEW: Self = Self(PhantomData);
}

impl<T> Clone for SecretParser<T> {
    fn clone(&self) -> Self {
        Self::NEW
    }
}

impl<T> TypedValueParser for SecretParser<T>
where
    T: FromStr<Err: Error> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let parsed = match value.to_str() {
            Some(text) => text.parse().map_err(|fault| chain(&fault)),
            None => Err("must be UTF-8".to_owned()),
        };
        parsed.map_err(|reason| {
            let name = argument.map(ToString::to_string).unwrap_or_default();
            let message = format!("invalid value for '{name}': {reason}\n\nFor more information, try '--help'.\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}
