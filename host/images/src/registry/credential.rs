// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Credentials of a user at a registry.

#[cfg(test)]
use secrecy::ExposeSecret as _;
use secrecy::SecretString;

#[derive(Clone, Debug)]
pub(super) enum Credential {
    None,
    /// The operator does not name the image, so the operator's credentials are not used for it.
    Withheld,
    /// The user name is secret too, because some registries accept a token as the user name.
    Password {
        user: SecretString,
        password: SecretString,
    },
    /// A token that is exchanged for access tokens at the token service, and never sent in requests for manifests or
    /// blobs.
    IdentityToken(SecretString),
}

impl Credential {
    /// Describes the credentials for error messages.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::None => "no credentials for the registry were found",
            Self::Withheld => "the operator's credentials are used only for images that WAGGLE_ALLOWED_IMAGES names",
            Self::Password { .. } | Self::IdentityToken(_) => "the credentials found for the registry were rejected",
        }
    }
}

#[cfg(test)]
impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) | (Self::Withheld, Self::Withheld) => true,
            (Self::Password { user, password }, Self::Password { user: other, password: others }) => {
                user.expose_secret() == other.expose_secret() && password.expose_secret() == others.expose_secret()
            }
            (Self::IdentityToken(token), Self::IdentityToken(other)) => token.expose_secret() == other.expose_secret(),
            _ => false,
        }
    }
}
