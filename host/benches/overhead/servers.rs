// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The compared servers: axum alone, rmcp behind axum, and waggle with the real agent in this process.

use std::{ffi::OsString, sync::Arc};

use axum::{Json, Router, routing::post};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{CallToolRequestParams, CallToolResponse, CallToolResult, ServerCapabilities, ServerConfig},
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use waggle::{
    cli::{self, Command},
    domain::runtime::ByRuntime,
    server::Waggle,
};
use waggle_images::reference::ImageRef;

use crate::machines::InProcess;

/// A handler that responds to every call with the result of `list_environments` on an empty server.
#[derive(Clone)]
struct Bare;

fn nothing() -> Value {
    json!({"count": 0, "environments": []})
}

impl ServerHandler for Bare {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn call_tool(
        &self,
        _request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        Ok(CallToolResponse::Complete(CallToolResult::structured(nothing())))
    }
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move {
        use axum::serve::ListenerExt as _;
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        axum::serve(listener, router).await.unwrap();
    });
    url
}

pub(crate) async fn axum() -> String {
    let echo = |Json(_): Json<Value>| async { Json(json!({"result": {"structuredContent": nothing()}})) };
    serve(Router::new().route("/mcp", post(echo))).await
}

pub(crate) async fn rmcp() -> String {
    let config = StreamableHttpServerConfig::default().with_json_response(true);
    let bare = StreamableHttpService::new(|| Ok(Bare), Arc::new(LocalSessionManager::default()), config);
    serve(Router::new().route_service("/mcp", bare)).await
}

pub(crate) async fn waggle() -> (Waggle, String) {
    let words = ["waggle", "serve"].map(OsString::from);
    let Command::Serve(settings) = cli::parse(words, &|_| None).unwrap().command else { panic!("expected serve") };
    let image = || "oci:/in-process".parse::<ImageRef>().unwrap();
    let images = ByRuntime { python: image(), node: image(), shell: image() };
    let mut waggle = Waggle::start(&settings, images, Arc::new(InProcess::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = waggle.listen(listener, None, Vec::new()).unwrap();
    (waggle, format!("http://{address}/mcp"))
}
