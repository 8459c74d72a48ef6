// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Parses the arguments of tools, and reports what is wrong with them.

use rmcp::model::JsonObject;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    domain::{environment_id::EnvironmentId, guest_path::GuestPath, runtime::Runtime},
    service::fault::ArgumentFault,
};

/// Maximum number of characters of a client's text that an error quotes; the rest is cut off.
const NAME_SHOWN_CHARS_MAX: usize = 64;

/// Maximum number of characters of serde's message about an invalid value; serde quotes the whole value.
const REASON_SHOWN_CHARS_MAX: usize = 300;

/// A runtime by its name.
#[derive(Clone, Copy, Debug, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum RuntimeArgument {
    Python,
    Node,
    Shell,
}

impl From<RuntimeArgument> for Runtime {
    fn from(argument: RuntimeArgument) -> Self {
        match argument {
            RuntimeArgument::Python => Self::Python,
            RuntimeArgument::Node => Self::Node,
            RuntimeArgument::Shell => Self::Shell,
        }
    }
}

/// Parses the arguments of a tool with this schema.
pub(super) fn parse<T: DeserializeOwned>(
    tool: &'static str,
    schema: &JsonObject,
    arguments: JsonObject,
) -> Result<T, SchemaFault> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let allowed: Vec<&str> = properties.into_iter().flat_map(JsonObject::keys).map(String::as_str).collect();
    if let Some(unknown) = arguments.keys().find(|name| !allowed.contains(&name.as_str())) {
        let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        return Err(SchemaFault::Unknown { name: shown(unknown), tool, allowed });
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    if let Some(missing) = required.filter_map(Value::as_str).find(|name| !arguments.contains_key(*name)) {
        return Err(SchemaFault::Missing { name: missing.to_owned(), tool });
    }
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|fault| {
        let name = shown(&fault.path().to_string());
        let reason = fault.into_inner().to_string().chars().take(REASON_SHOWN_CHARS_MAX).collect();
        SchemaFault::Invalid { name, reason }
    })
}

pub(super) fn parse_id(text: &str) -> Result<EnvironmentId, ArgumentFault> {
    text.parse().map_err(ArgumentFault::Id)
}

pub(super) fn parse_path(name: &'static str, path: String) -> Result<GuestPath, ArgumentFault> {
    GuestPath::parse(path).map_err(|source| ArgumentFault::Path { name, source })
}

/// Escapes and shortens a name from a client for an error message.
pub(super) fn shown(name: &str) -> String {
    name.escape_debug().take(NAME_SHOWN_CHARS_MAX).collect()
}

/// Arguments that do not match the schema of their tool.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaFault {
    #[error("unknown argument \"{name}\" for {tool}; allowed: {allowed}")]
    Unknown { name: String, tool: &'static str, allowed: String },
    #[error("missing argument \"{name}\" for {tool}; it is required")]
    Missing { name: String, tool: &'static str },
    #[error("invalid argument \"{name}\": {reason}")]
    Invalid { name: String, reason: String },
}
