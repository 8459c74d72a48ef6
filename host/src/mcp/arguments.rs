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

/// Another name of an argument, which clients may use although it is not in the schema.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alias {
    pub(super) alias: &'static str,
    pub(super) name: &'static str,
}

/// Parses the arguments of a tool with this schema.
///
/// Models often send a value in another JSON type. If the value has one meaning in the type of the schema, it is
/// converted; `null` counts as left out.
pub(super) fn parse<T: DeserializeOwned>(
    tool: &'static str,
    schema: &JsonObject,
    mut arguments: JsonObject,
) -> Result<T, SchemaFault> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let allowed: Vec<&str> = properties.into_iter().flat_map(JsonObject::keys).map(String::as_str).collect();
    if let Some(unknown) = arguments.keys().find(|name| !allowed.contains(&name.as_str())) {
        let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        return Err(SchemaFault::Unknown { name: shown(unknown), tool, allowed });
    }
    arguments.retain(|_, value| !value.is_null());
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    if let Some(missing) = required.filter_map(Value::as_str).find(|name| !arguments.contains_key(*name)) {
        return Err(SchemaFault::Missing { name: missing.to_owned(), tool });
    }
    for (name, value) in &mut arguments {
        if let Some(schema) = properties.and_then(|properties| properties.get(name)) {
            convert(name, value, schema)?;
        }
    }
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|fault| {
        let name = shown(&fault.path().to_string());
        let reason = fault.into_inner().to_string().chars().take(REASON_SHOWN_CHARS_MAX).collect();
        SchemaFault::Invalid { name, reason }
    })
}

/// Renames an argument. Both names may be given if their values are equal.
pub(super) fn rename(arguments: &mut JsonObject, Alias { alias, name }: Alias) -> Result<(), SchemaFault> {
    match (arguments.remove(alias).filter(|value| !value.is_null()), arguments.get(name)) {
        (Some(value), None | Some(Value::Null)) => drop(arguments.insert(name.to_owned(), value)),
        (Some(value), Some(other)) if value != *other => return Err(SchemaFault::Contradiction { alias, name }),
        (Some(_) | None, _) => {}
    }
    Ok(())
}

/// Replaces an array by its JSON text.
pub(super) fn write_list(arguments: &mut JsonObject, name: &str) {
    if let Some(value @ Value::Array(_)) = arguments.get_mut(name) {
        *value = Value::String(value.to_string());
    }
}

/// Converts a value to the type in its schema, and checks the type.
fn convert(name: &str, value: &mut Value, schema: &Value) -> Result<(), SchemaFault> {
    let wanted = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let converted = match (wanted, &*value) {
        ("number" | "integer", Value::String(text)) => text.trim().parse().ok().map(Value::Number),
        ("boolean", Value::String(text)) => text.trim().to_ascii_lowercase().parse().ok().map(Value::Bool),
        ("object", Value::String(text)) => serde_json::from_str::<JsonObject>(text).ok().map(Value::Object),
        ("string", Value::Number(number)) => Some(Value::String(number_text(number))),
        ("string", Value::Bool(_)) => Some(Value::String(value.to_string())),
        _ => None,
    };
    if let Some(converted) = converted {
        *value = converted;
    }
    let invalid = |reason: String| Err(SchemaFault::Invalid { name: shown(name), reason });
    let fits = match wanted {
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "object" => value.is_object(),
        _ => true,
    };
    if !fits {
        let article = if wanted.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
        return invalid(format!("must be {article} {wanted}"));
    }
    let allowed: Vec<_> = schema.get("enum").and_then(Value::as_array).into_iter().flatten().collect();
    if !allowed.is_empty() && !allowed.contains(&&*value) {
        let allowed: Vec<_> = allowed.into_iter().filter_map(Value::as_str).collect();
        return invalid(format!("must be one of: {}", allowed.join(", ")));
    }
    if let (Value::Object(map), Some(schema)) = (value, schema.get("additionalProperties")) {
        map.iter_mut().try_for_each(|(key, value)| convert(&format!("{name}.{key}"), value, schema))?;
    }
    Ok(())
}

/// Returns a number as text; whole numbers have no fraction, although some clients send every number as a float.
fn number_text(number: &serde_json::Number) -> String {
    let text = number.to_string();
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
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
    #[error("arguments \"{name}\" and \"{alias}\" have different values; give only \"{name}\"")]
    Contradiction { alias: &'static str, name: &'static str },
    #[error("invalid argument \"{name}\": {reason}")]
    Invalid { name: String, reason: String },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Arguments {
        seconds: Option<f64>,
        append: Option<bool>,
        mode: Option<String>,
        variables: Option<std::collections::BTreeMap<String, String>>,
        language: Option<String>,
    }

    fn parsed(arguments: &Value) -> Result<Arguments, String> {
        let schema = json!({"type": "object", "properties": {
            "seconds": {"type": "number"},
            "append": {"type": "boolean"},
            "mode": {"type": "string"},
            "variables": {"type": "object", "additionalProperties": {"type": "string"}},
            "language": {"type": "string", "enum": ["python", "shell"]},
        }});
        let mut arguments = arguments.as_object().unwrap().clone();
        rename(&mut arguments, Alias { alias: "runtime", name: "language" })
            .and_then(|()| parse("tool", schema.as_object().unwrap(), arguments))
            .map_err(|fault| fault.to_string())
    }

    #[test]
    fn values_with_one_meaning_are_converted() {
        let exact =
            parsed(&json!({"seconds": 30, "append": true, "mode": "755", "variables": {"A": "b", "PORT": "80"}}));
        let converted = json!({
            "seconds": " 30 ",
            "append": "True",
            "mode": 755.0,
            "variables": "{\"A\": \"b\", \"PORT\": 80}",
            "language": null,
        });
        assert_eq!(parsed(&converted), exact);
        assert_eq!(parsed(&json!({"seconds": "1e-1"})).unwrap().seconds, Some(0.1));
        assert_eq!(parsed(&json!({"variables": {"DEBUG": true}})).unwrap().variables.unwrap()["DEBUG"], "true");
    }

    #[test]
    fn errors_name_the_type_in_the_schema() {
        for (arguments, expected) in [
            (json!({"seconds": "soon"}), "invalid argument \"seconds\": must be a number"),
            (json!({"seconds": [30]}), "invalid argument \"seconds\": must be a number"),
            (json!({"seconds": "NaN"}), "invalid argument \"seconds\": must be a number"),
            (json!({"append": 1}), "invalid argument \"append\": must be a boolean"),
            (json!({"mode": {"a": 1}}), "invalid argument \"mode\": must be a string"),
            (json!({"variables": "A=b"}), "invalid argument \"variables\": must be an object"),
            (json!({"variables": {"A": ["b"]}}), "invalid argument \"variables.A\": must be a string"),
            (json!({"language": "ruby"}), "invalid argument \"language\": must be one of: python, shell"),
        ] {
            assert_eq!(parsed(&arguments).unwrap_err(), expected);
        }
    }

    #[test]
    fn alias_is_taken_and_must_not_contradict() {
        for arguments in [
            json!({"runtime": "shell"}),
            json!({"runtime": "shell", "language": "shell"}),
            json!({"runtime": "shell", "language": null}),
            json!({"runtime": null, "language": "shell"}),
        ] {
            assert_eq!(parsed(&arguments).unwrap().language.unwrap(), "shell");
        }
        let both = parsed(&json!({"runtime": "shell", "language": "python"})).unwrap_err();
        assert_eq!(both, "arguments \"language\" and \"runtime\" have different values; give only \"language\"");
    }
}
