// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The tools `create_environment`, `destroy_environment` and `list_environments`.

use std::{borrow::Cow, collections::BTreeMap, future::ready, time::Duration};

use futures_util::FutureExt as _;
use rmcp::model::ToolAnnotations;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use waggle_images::reference::{ImageRef, PullRights, RegistryRef};

use super::{
    arguments::{RuntimeArgument, parse_id},
    call_context::CallContext,
    failure::Outcome,
    formats, results,
    services::Services,
    size_arguments::SizeArguments,
    tool::ServedTool,
};
use crate::{
    config::duration,
    domain::{
        capabilities::AgentOrigin,
        egress::Policy,
        environment::{Environment, EnvironmentName, NewEnvironment},
        runtime::Runtime,
        stage::Stage,
        variables::Variables,
    },
    service::fault::ArgumentFault,
};

/// The key in the result's `_meta` with the origin of the agent in the machine: `image` or `host`.
const AGENT_META: &str = "waggle/agent_origin";

/// Maximum idle timeout that a client can set, in minutes.
const IDLE_MINUTES_MAX: f64 = 60.0;

/// Number of stages in the progress of create_environment: the image, the disks, the boot.
const STAGES: u32 = 3;

/// Maximum memory for the result of create_environment, with names of any length.
const RESULT_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateArguments {
    /// Sets the default language and the package manager of the environment.
    language: RuntimeArgument,
    /// A name for people to read, at most 64 characters; by default `<language>-<8 hex digits>`.
    name: Option<String>,
    /// The destinations that programs in the environment may connect to: `none`, `public`, or rules separated by
    /// commas, such as `index.example:443, *.files.example:443` or `deny 192.0.2.0/24, public`. The first rule that
    /// matches decides. Destinations that the server's operator denies stay denied. By default everything that the
    /// operator allows.
    network: Option<String>,
    /// The idle timeout: the environment is destroyed after this many minutes without a call. At most 60; by default
    /// 30, unless the server's operator set another default.
    timeout_minutes: Option<f64>,
    /// An image in a registry instead of the language's own, such as `node:22` or `ghcr.io/owner/name:1.0`, if the
    /// server's operator allows it.
    image: Option<String>,
    /// The number of virtual CPUs. This and the sizes below have defaults and maximums that the server's operator sets.
    cpus: Option<f64>,
    /// The memory in MiB, at least 128.
    memory_mb: Option<f64>,
    /// The disk space for files that programs create, in MiB, at least 64.
    disk_mb: Option<f64>,
    /// Environment variables for all calls, by name; at most 256 variables and 64 KiB in total. PATH cannot be set.
    environment: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Created {
    /// The time of the creation, as RFC 3339.
    created_at: String,
    /// The number of virtual CPUs.
    cpus: u32,
    /// The disk space in MiB.
    disk_mb: u32,
    /// The id of the environment, for calls of the other tools.
    environment_id: String,
    image: String,
    /// The memory in MiB.
    memory_mb: u32,
    name: String,
    runtime: &'static str,
    status: &'static str,
    /// The idle timeout, such as `30m0s`.
    timeout: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DestroyArguments {
    /// The environment's id, as returned by create_environment.
    environment_id: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Destroyed {
    message: String,
    status: &'static str,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListArguments {}

#[derive(Debug, Serialize, JsonSchema)]
struct Listed<'a> {
    count: usize,
    /// The environments, oldest first.
    environments: &'a [ListedEnvironment],
    /// True if you have more environments than one call can list; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    truncated: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ListedEnvironment {
    /// The number of processes that the environment's kernel killed for want of memory after their call had ended;
    /// absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    background_memory_kills: Option<u64>,
    /// The time of the creation, as RFC 3339.
    created_at: String,
    /// The number of virtual CPUs.
    cpus: u32,
    /// The disk space in MiB.
    disk_mb: u32,
    /// The number of connections and names that the environment's network policy refused; absent if none was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_refused: Option<u64>,
    /// The target of the latest refused connection, or the latest refused name; absent if none was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_refused_last: Option<String>,
    environment_id: String,
    image: String,
    /// The memory in MiB.
    memory_mb: u32,
    name: String,
    runtime: &'static str,
    /// `creating`, `running`, `destroying` or `error`.
    status: &'static str,
}

pub(super) fn create_environment() -> ServedTool {
    ServedTool::new(
        "create_environment",
        "Create environment",
        "Create an isolated Linux machine with its own kernel and file system, and wait until it runs (some seconds). \
         Returns its environment_id, which all other tools except list_environments need. Choose the language that \
         you use most; code in another language runs too if its interpreter is installed. Destroy the \
         environment when you are done.",
        ToolAnnotations::new().read_only(false).destructive(false).idempotent(false).open_world(false),
        |services, arguments, context| services.create_environment(arguments, context).boxed(),
    )
    .with_alias("runtime", "language")
    .with_result::<Created>()
    .with_tasks(RESULT_BYTES_MAX)
}

pub(super) fn destroy_environment() -> ServedTool {
    ServedTool::new(
        "destroy_environment",
        "Destroy environment",
        "Stop an environment and delete everything in it, files included. This cannot be undone. Destroying a \
         destroyed environment does nothing.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(true).open_world(false),
        |services, arguments, context| services.destroy_environment(arguments, context).boxed(),
    )
    .with_result::<Destroyed>()
}

pub(super) fn list_environments() -> ServedTool {
    ServedTool::new(
        "list_environments",
        "List environments",
        "List your environments, oldest first, with their ids, runtimes and states. Only running environments accept \
         calls.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
        |services, ListArguments {}, context| ready(services.list_environments(context)).boxed(),
    )
    .with_result::<Listed<'static>>()
    .with_large_results()
}

impl Services {
    async fn create_environment(&self, arguments: CreateArguments, context: &CallContext) -> Outcome {
        let name = arguments.name.filter(|name| !name.is_empty()).map(|name| EnvironmentName::parse(&name));
        let network = arguments.network.map(|network| network.parse::<Policy>());
        let runtime = Runtime::from(arguments.language);
        let (image, pull_rights) = self.image(runtime, arguments.image.as_deref())?;
        let CreateArguments { cpus, memory_mb, disk_mb, .. } = arguments;
        let variables = Variables::parse(arguments.environment.unwrap_or_default());
        let new = NewEnvironment {
            owner: context.owner.clone(),
            name: name.transpose().map_err(ArgumentFault::Name)?,
            runtime,
            image,
            pull_rights,
            size: SizeArguments { cpus, memory_mb, disk_mb }.size(&self.defaults.sizes)?,
            variables: variables.map_err(ArgumentFault::Variables)?,
            idle_timeout: self.idle_timeout(arguments.timeout_minutes)?,
            network: network.transpose().map_err(ArgumentFault::Network)?,
        };
        let progress = context.progress.clone();
        let stages = move |stage: Stage| {
            // A pull is always followed by a merge, so each of the two is half of the first stage.
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
        // Dropping the future cancels the creation and destroys the unfinished environment.
        let create = self.environments.create(new, stages);
        let (environment, agent_origin) = context.unless_cancelled(create).await?;
        let mut result = results::object(&Created {
            created_at: formats::rfc3339(environment.created_at),
            cpus: environment.size.cpus,
            disk_mb: environment.size.disk_mib,
            environment_id: environment.id.to_string(),
            image: environment.image.short_name(),
            memory_mb: environment.size.memory_mib,
            name: environment.name.as_str().to_owned(),
            runtime: environment.runtime.name(),
            status: environment.state().name(),
            timeout: duration::format(environment.idle_timeout),
        })?;
        result.meta.get_or_insert_default().0.insert(AGENT_META.to_owned(), json!(origin(agent_origin)));
        Ok(result)
    }

    /// Returns the image that a client has chosen, or else the image of the runtime, and the rights to pull it.
    fn image(&self, runtime: Runtime, chosen: Option<&str>) -> Result<(ImageRef, PullRights), ArgumentFault> {
        let images = &self.defaults.images;
        let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) else {
            return Ok((images.of(runtime).clone(), PullRights::Operator));
        };
        let chosen: RegistryRef = chosen.parse().map_err(ArgumentFault::Image)?;
        let rights = self.defaults.allowed_images.rights(&chosen, images).map_err(ArgumentFault::ImageNotAllowed)?;
        Ok((ImageRef::Registry(chosen), rights))
    }

    async fn destroy_environment(&self, arguments: DestroyArguments, context: &CallContext) -> Outcome {
        let id = parse_id(&arguments.environment_id)?;
        context.progress.stage(0.0, None, "destroying the environment");
        self.environments.destroy(&context.owner, id).await?;
        results::object(&Destroyed { message: format!("Environment {id} has been destroyed"), status: "destroyed" })
    }

    fn list_environments(&self, context: &CallContext) -> Outcome {
        let environments = self.environments.list(&context.owner);
        let environments: Vec<_> = environments.iter().map(|environment| self.listed(environment)).collect();
        results::list(environments.len(), |count| Listed {
            count,
            environments: environments.get(..count).unwrap_or_default(),
            truncated: count < environments.len(),
        })
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

    fn listed(&self, environment: &Environment) -> ListedEnvironment {
        let (egress_refused, last_refused) = self.environments.egress_refused(environment.id);
        let memory_kills = self.environments.background_memory_kills(environment.id);
        ListedEnvironment {
            background_memory_kills: (memory_kills > 0).then_some(memory_kills),
            created_at: formats::rfc3339(environment.created_at),
            cpus: environment.size.cpus,
            disk_mb: environment.size.disk_mib,
            egress_refused: (egress_refused > 0).then_some(egress_refused),
            egress_refused_last: last_refused.map(|last| last.to_string()),
            environment_id: environment.id.to_string(),
            image: environment.image.short_name(),
            memory_mb: environment.size.memory_mib,
            name: environment.name.as_str().to_owned(),
            runtime: environment.runtime.name(),
            status: environment.state().name(),
        }
    }
}

fn origin(origin: AgentOrigin) -> &'static str {
    match origin {
        AgentOrigin::Host => "host",
        AgentOrigin::Image => "image",
    }
}
