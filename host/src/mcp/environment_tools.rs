// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `create_environment`, `destroy_environment`, `list_environments`.

use std::{borrow::Cow, time::Duration};

use rmcp::model::{CallToolResult, JsonObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Caller, Inner,
    arguments::{self, RuntimeArgument},
    errors::Failure,
    results,
};
use crate::{
    config::duration,
    domain::{
        egress::Policy,
        environment::{Environment, EnvironmentId, EnvironmentName, NewEnvironment},
        ports::{AgentOrigin, Stage},
        runtime::Runtime,
    },
    service::fault::{ArgumentFault, CallerFault},
};

/// The longest idle time that a client can ask for, in minutes.
const IDLE_MINUTES_MAX: f64 = 60.0;

/// Stages that a create reports: those of the machine.
const STAGES: u32 = 3;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateArguments {
    /// What the environment is for: its default language and its package manager.
    runtime: RuntimeArgument,
    /// A name for people, at most 64 characters; `<runtime>-<8 hex digits>` if left out.
    name: Option<String>,
    /// What programs in the environment may connect to, within what the operator allows: `none`, `public`, or rules
    /// separated by commas, of which the first that matches decides, such as `index.example:443, *.files.example:443`
    /// or `deny 192.0.2.0/24, public`. All that the operator allows if left out.
    network: Option<String>,
    /// The environment is destroyed when nobody has called it for so many minutes, at most 60; 30 if left out,
    /// unless the server's operator says otherwise.
    timeout_minutes: Option<f64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Created {
    /// Whether the machine's agent came with the image or from the host.
    agent_origin: &'static str,
    /// RFC 3339.
    created_at: String,
    /// Names the environment in all other tools.
    environment_id: String,
    name: String,
    runtime: &'static str,
    status: &'static str,
    /// The idle time-out, as `30m0s`.
    timeout: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DestroyArguments {
    /// As create_environment returned it.
    environment_id: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Destroyed {
    message: String,
    status: &'static str,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListArguments {}

#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    count: usize,
    /// Oldest first.
    environments: Vec<ListedEnvironment>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ListedEnvironment {
    /// Whether the machine's agent came with the image or from the host; absent until it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_origin: Option<&'static str>,
    /// RFC 3339.
    created_at: String,
    /// How many connections and names its network policy has refused it.
    egress_refused: u64,
    /// What the latest of them was for.
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_refused_last: Option<String>,
    environment_id: String,
    name: String,
    runtime: &'static str,
    /// `creating`, `running`, `destroying` or `error`.
    status: &'static str,
}

pub(super) fn create_environment() -> Tool {
    let tool = results::tool::<CreateArguments>(
        "create_environment",
        "Create environment",
        "Create an isolated Linux machine with its own kernel and file system, and wait until it runs (some seconds). \
         Returns its environment_id, which every other tool needs. Choose the runtime by what you mostly run in it; \
         code in another language can be run too where its interpreter is there. Destroy it when you are done.",
        ToolAnnotations::new().read_only(false).destructive(false).idempotent(false).open_world(false),
    );
    results::with_result::<Created>(tool)
}

pub(super) fn destroy_environment() -> Tool {
    let tool = results::tool::<DestroyArguments>(
        "destroy_environment",
        "Destroy environment",
        "Stop an environment and delete everything in it, files included. There is no way back. Destroying one that is \
         destroyed already does nothing.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(true).open_world(false),
    );
    results::with_result::<Destroyed>(tool)
}

pub(super) fn list_environments() -> Tool {
    let tool = results::tool::<ListArguments>(
        "list_environments",
        "List environments",
        "List your environments, oldest first, with their ids, runtimes and states. Only those that are running take \
         calls.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
    );
    results::with_result::<Listed>(tool)
}

impl Inner {
    pub(super) async fn create_environment(
        &self,
        arguments: JsonObject,
        caller: &Caller,
    ) -> Result<CallToolResult, Failure> {
        let arguments: CreateArguments = arguments::read("create_environment", arguments)?;
        let name = arguments.name.filter(|name| !name.is_empty()).map(|name| EnvironmentName::parse(&name));
        let network = arguments.network.map(|network| network.parse::<Policy>());
        let runtime = Runtime::from(arguments.runtime);
        let new = NewEnvironment {
            owner: caller.owner.clone(),
            name: name.transpose().map_err(ArgumentFault::Name)?,
            runtime,
            image: self.defaults.images.of(runtime).clone(),
            idle_timeout: self.idle_timeout(arguments.timeout_minutes)?,
            network: network.transpose().map_err(ArgumentFault::Network)?,
        };
        let progress = caller.progress.clone();
        let stages = move |stage: Stage| {
            // An image that is pulled is merged as well.
            let at = match stage {
                Stage::Image => 0.0,
                Stage::Pull(amount) => amount.share() / 2.0,
                Stage::Merge(amount) => f64::midpoint(1.0, amount.share()),
                Stage::Disks => 1.0,
                Stage::Boot => 2.0,
            };
            let message: Cow<'static, str> = match stage.amount() {
                Some(amount) => format!("{} ({amount})", stage.describe()).into(),
                None => stage.describe().into(),
            };
            progress.stage(at, Some(STAGES), message);
        };
        // A create that is dropped undoes itself.
        let (environment, agent_origin) = tokio::select! {
            created = self.environments.create(new, Box::new(stages)) => created?,
            () = caller.cancelled.cancelled() => return Err(CallerFault::Cancelled { executed: None }.into()),
        };
        results::object(&Created {
            agent_origin: origin(agent_origin),
            created_at: results::rfc3339(environment.created_at),
            environment_id: environment.id.to_string(),
            name: environment.name.as_str().to_owned(),
            runtime: environment.runtime.name(),
            status: environment.state().name(),
            timeout: duration::format(environment.idle_timeout),
        })
    }

    pub(super) async fn destroy_environment(
        &self,
        arguments: JsonObject,
        caller: &Caller,
    ) -> Result<CallToolResult, Failure> {
        let arguments: DestroyArguments = arguments::read("destroy_environment", arguments)?;
        let id = parse_id(&arguments.environment_id)?;
        caller.progress.stage(0.0, None, "destroying the environment");
        self.environments.destroy(&caller.owner, id).await?;
        results::object(&Destroyed { message: format!("Environment {id} has been destroyed"), status: "destroyed" })
    }

    pub(super) fn list_environments(&self, arguments: JsonObject, caller: &Caller) -> Result<CallToolResult, Failure> {
        let ListArguments {} = arguments::read("list_environments", arguments)?;
        let environments = self.environments.list(&caller.owner);
        let listed = |known: &Environment| {
            let (refused, last) = self.environments.egress_refused(known.id);
            listed(known, refused, last.map(|last| last.to_string()))
        };
        let environments: Vec<_> = environments.iter().map(listed).collect();
        results::object(&Listed { count: environments.len(), environments })
    }

    fn idle_timeout(&self, minutes: Option<f64>) -> Result<Duration, ArgumentFault> {
        match minutes {
            Some(minutes) if minutes > IDLE_MINUTES_MAX => {
                Err(ArgumentFault::AboveMaximum { name: "timeout_minutes", value: minutes, max: IDLE_MINUTES_MAX })
            }
            Some(minutes) if minutes > 0.0 => Ok(Duration::from_secs_f64(minutes * 60.0)),
            Some(_) | None => Ok(self.defaults.idle_timeout),
        }
    }
}

fn listed(environment: &Environment, egress_refused: u64, egress_refused_last: Option<String>) -> ListedEnvironment {
    ListedEnvironment {
        agent_origin: environment.agent_origin.map(origin),
        created_at: results::rfc3339(environment.created_at),
        egress_refused,
        egress_refused_last,
        environment_id: environment.id.to_string(),
        name: environment.name.as_str().to_owned(),
        runtime: environment.runtime.name(),
        status: environment.state().name(),
    }
}

fn origin(origin: AgentOrigin) -> &'static str {
    match origin {
        AgentOrigin::Host => "host",
        AgentOrigin::Image => "image",
    }
}

pub(super) fn parse_id(text: &str) -> Result<EnvironmentId, ArgumentFault> {
    text.parse().map_err(ArgumentFault::Id)
}
