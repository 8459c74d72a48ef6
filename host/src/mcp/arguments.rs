// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads a tool's arguments, and says clearly what is wrong with them.

use std::sync::LazyLock;

use rmcp::model::JsonObject;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::domain::runtime::Runtime;

/// An argument's name is repeated in an error, but not without end.
const NAME_SHOWN_CHARS_MAX: usize = 64;

/// So is what is wrong with its value.
const WRONG_SHOWN_CHARS_MAX: usize = 300;

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

/// Checks the arguments against the tool's schema and reads them.
pub(super) fn read<T: DeserializeOwned>(tool: &'static str, arguments: JsonObject) -> Result<T, SchemaFault> {
    static NO_SCHEMA: LazyLock<JsonObject> = LazyLock::new(JsonObject::new);
    let schema =
        super::tools().iter().find(|known| known.name == tool).map_or(&*NO_SCHEMA, |known| &known.input_schema);
    let allowed: Vec<&str> = match schema.get("properties") {
        Some(Value::Object(properties)) => properties.keys().map(String::as_str).collect(),
        Some(_) | None => Vec::new(),
    };
    if let Some(unknown) = arguments.keys().find(|name| !allowed.contains(&name.as_str())) {
        let name = unknown.escape_debug().take(NAME_SHOWN_CHARS_MAX).collect();
        let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        return Err(SchemaFault::Unknown { name, tool, allowed });
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    if let Some(missing) = required.filter_map(Value::as_str).find(|name| !arguments.contains_key(*name)) {
        return Err(SchemaFault::Missing { name: missing.to_owned(), tool });
    }
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|fault| {
        let name = fault.path().to_string().escape_debug().take(NAME_SHOWN_CHARS_MAX).collect();
        // It repeats the value, which may be as long as a body.
        let what = fault.into_inner().to_string();
        SchemaFault::Wrong { name, what: what.chars().take(WRONG_SHOWN_CHARS_MAX).collect() }
    })
}

/// Arguments that do not fit their tool's schema.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaFault {
    #[error("there is no argument \"{name}\" of {tool}; there are: {allowed}")]
    Unknown { name: String, tool: &'static str, allowed: String },
    #[error("the argument \"{name}\" of {tool} is missing; it is required")]
    Missing { name: String, tool: &'static str },
    #[error("the argument \"{name}\" is wrong: {what}")]
    Wrong { name: String, what: String },
}
