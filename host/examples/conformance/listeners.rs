// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The subscriptions of all clients.

use std::sync::{Arc, Mutex};

use rmcp::{
    model::ServerNotification,
    service::{SubscriptionContext, SubscriptionSink},
};
use serde_json::{from_value, json};

/// The open subscriptions.
#[derive(Clone, Default)]
pub(crate) struct Listeners(Arc<Mutex<Vec<SubscriptionSink>>>);

impl Listeners {
    /// Keeps a subscription until its client cancels it.
    pub(crate) async fn hold(&self, context: SubscriptionContext) {
        self.0.lock().unwrap().push(context.sink().clone());
        context.cancelled().await;
        self.0.lock().unwrap().retain(|listener| listener.id() != context.sink().id());
    }

    /// Notifies each subscription that a list has changed.
    pub(crate) async fn announce(&self, list: &str) {
        let method = format!("notifications/{list}/list_changed");
        let note: ServerNotification = from_value(json!({"method": method})).unwrap();
        let listeners = self.0.lock().unwrap().clone();
        for listener in listeners {
            // Sending fails if the client has disconnected or did not subscribe to this list. Neither is an error.
            let _ = listener.send(note.clone()).await;
        }
    }
}
