// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The limit of the ids that clients choose: request ids and progress tokens.
//!
//! rmcp repeats these ids in answers and reports, which it may keep until the session ends. Without a limit, an id may
//! be as long as a request body.

use std::fmt;

use futures_util::{FutureExt as _, future::BoxFuture};
use rmcp::{
    ErrorData, RoleServer,
    model::{
        ClientJsonRpcMessage, ClientNotification, GetMeta as _, NumberOrString, ProgressToken, ServerJsonRpcMessage,
    },
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::errors;
use crate::error_code::ErrorCode;

/// Maximum size of an id, in bytes. Clients use numbers or UUIDs.
const ID_BYTES_MAX: usize = 1024;

/// The message of the error for an id above the limit.
#[must_use]
pub(crate) fn long_id_message() -> String {
    format!("request ids and progress tokens must have at most {ID_BYTES_MAX} bytes")
}

/// Whether a JSON message, or one of several in a list, has an id above the limit; `false` for invalid JSON.
pub(crate) fn has_long_id(json: &[u8]) -> bool {
    json.len() > ID_BYTES_MAX
        && Part::Message.deserialize(&mut serde_json::Deserializer::from_slice(json)).unwrap_or(false)
}

/// A part of a message that may contain ids.
#[derive(Clone, Copy)]
enum Part {
    Message,
    Params,
    Meta,
    Id,
    Other,
}

impl Part {
    /// Returns the part with this name in `self`.
    fn named(self, name: &str) -> Self {
        match (self, name) {
            (Self::Message, "id") | (Self::Params, "requestId") => Self::Id,
            (Self::Params | Self::Meta, "progressToken") => Self::Id,
            (Self::Message, "params") => Self::Params,
            (Self::Params, "_meta") => Self::Meta,
            _ => Self::Other,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        match self {
            Self::Other => deserializer.deserialize_ignored_any(IgnoredAny).map(|_| false),
            Self::Message | Self::Params | Self::Meta | Self::Id => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E>(self, _value: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E>(self, _value: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u64<E>(self, _value: u64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E>(self, _value: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        Ok(matches!(self, Self::Id) && text.len() > ID_BYTES_MAX)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some(long) =
            values.next_element_seed(if matches!(self, Self::Message) { self } else { Self::Other })?
        {
            found |= long;
        }
        Ok(found)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some(part) = values.next_key_seed(NameIn(self))? {
            found |= values.next_value_seed(part)?;
        }
        Ok(found)
    }
}

/// Reads a name in an object, and returns the part with this name.
struct NameIn(Part);

impl<'de> DeserializeSeed<'de> for NameIn {
    type Value = Part;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Part, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameIn {
    type Value = Part;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Part, E> {
        Ok(self.0.named(name))
    }
}

/// A transport that answers messages with an id above the limit with an error, instead of passing them on.
pub(super) struct LimitedIds<T> {
    inner: T,
    /// The refusal that is being sent. A call of `receive` may be dropped before it has been sent.
    refusal: Option<BoxFuture<'static, ()>>,
}

impl<T> LimitedIds<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, refusal: None }
    }
}

impl<T: Transport<RoleServer>> Transport<RoleServer> for LimitedIds<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.inner.send(item)
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            if let Some(refusal) = &mut self.refusal {
                refusal.await;
                self.refusal = None;
            }
            let message = self.inner.receive().await?;
            if !is_beyond_limit(&message) {
                return Some(message);
            }
            // If the output has failed, the next answer finds that out.
            let sent = self.inner.send(ServerJsonRpcMessage::error(long_id(), None));
            self.refusal = Some(sent.map(|_| ()).boxed());
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}

fn long_id() -> ErrorData {
    ErrorData::invalid_request(long_id_message(), Some(errors::data(ErrorCode::IdTooLong)))
}

fn is_beyond_limit(message: &ClientJsonRpcMessage) -> bool {
    let is_long = |id: &NumberOrString| matches!(id, NumberOrString::String(text) if text.len() > ID_BYTES_MAX);
    match message {
        ClientJsonRpcMessage::Request(request) => {
            let token = request.request.get_meta().get_progress_token();
            is_long(&request.id) || token.is_some_and(|ProgressToken(token)| is_long(&token))
        }
        ClientJsonRpcMessage::Notification(notification) => match &notification.notification {
            ClientNotification::CancelledNotification(cancelled) => {
                cancelled.params.request_id.as_ref().is_some_and(is_long)
            }
            ClientNotification::ProgressNotification(progress) => is_long(&progress.params.progress_token.0),
            ClientNotification::InitializedNotification(_)
            | ClientNotification::RootsListChangedNotification(_)
            | ClientNotification::CustomNotification(_)
            | _ => false,
        },
        ClientJsonRpcMessage::Response(response) => is_long(&response.id),
        ClientJsonRpcMessage::Error(error) => error.id.as_ref().is_some_and(is_long),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_ids_above_the_limit_and_nothing_else() {
        let (long, short) = ("x".repeat(ID_BYTES_MAX + 1), "x".repeat(ID_BYTES_MAX));
        for (template, expected) in [
            (r#"{"id": "ID"}"#, true),
            (r#"{"id": 1, "\u0069d": "ID"}"#, true),
            (r#"[{"id": 1}, {"id": "ID"}]"#, true),
            (r#"{"params": {"_meta": {"a": [{}], "progressToken": "ID"}}}"#, true),
            (r#"{"params": {"progressToken": "ID"}}"#, true),
            (r#"{"method": "notifications/cancelled", "params": {"requestId": "ID"}}"#, true),
            (r#"{"params": {"arguments": {"id": "ID", "requestId": "ID"}, "id": "ID"}}"#, false),
            (r#"{"params": ["ID"], "id": ["ID"], "method": "ID"}"#, false),
            (r#"{"id": -1.5, "params": null, "result": true, "x": "ID"}"#, false),
            (r#"{"id": "ID""#, false),
        ] {
            assert_eq!(has_long_id(template.replace("ID", &long).as_bytes()), expected, "{template}");
            assert!(!has_long_id(template.replace("ID", &short).as_bytes()), "{template}");
        }
        assert!(has_long_id(format!(r#"{{"id": "{}"}}"#, "\\u0001".repeat(ID_BYTES_MAX + 1)).as_bytes()));
        assert!(!has_long_id(format!(r#"{{"id": "{}"}}"#, "\\u0001".repeat(ID_BYTES_MAX)).as_bytes()));
    }
}
