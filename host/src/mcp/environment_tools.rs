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
    formats,
    progress::Progress,
    results,
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
        environment_id::EnvironmentId,
        runtime::Runtime,
        saved::{SavedKey, SavedName},
        stage::Stage,
        variables::Variables,
    },
    saved::SavedEntry,
    service::{
        environments::{
            Created,
            lasting::{SizeChoice, Variation},
        },
        fault::ArgumentFault,
    },
};

/// The key in the result's `_meta` with the origin of the agent in the machine: `image` or `host`.
const AGENT_META: &str = "waggle/agent_origin";

/// Maximum idle timeout that a client can set, in minutes.
const IDLE_MINUTES_MAX: f64 = 60.0;

/// Maximum number of saved environments in a list, and maximum of WAGGLE_SAVED_PER_OWNER.
const SAVED_LISTED_MAX: usize = 1000;

/// Number of stages in the progress of create_environment: the image, the disks, the boot.
const STAGES: u32 = 3;

/// Maximum memory for the result of create_environment, with names of any length.
const RESULT_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateArguments {
    /// Sets the default language and the package manager of the environment. Required, except with fork_of or saved.
    language: Option<RuntimeArgument>,
    /// The id of one of your environments, to fork it: the new environment gets a copy of its files, memory and running
    /// programs, and the other goes on. No call may run in it.
    fork_of: Option<String>,
    /// The name of one of your saved environments, to get an environment with its state. It stays saved.
    saved: Option<String>,
    /// True to wait until no call runs in the environment of fork_of; by default such a fork is an error.
    wait: Option<bool>,
    /// A name for people to read, at most 64 characters; by default `<language>-<8 hex digits>`.
    name: Option<String>,
    /// The destinations that programs in the environment may connect to: `none`, `public`, or rules separated by
    /// commas, such as `index.example:443, *.files.example:443` or `deny 192.0.2.0/24, public`. The first rule that
    /// matches decides. Destinations that the server's operator denies stay denied. By default everything that the
    /// operator allows.
    network: Option<String>,
    /// The idle timeout: the environment is destroyed or suspended after this many minutes without a call. At most 60;
    /// by default 30, unless the server's operator set another default.
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
struct CreatedResult {
    /// The time of the creation, as RFC 3339.
    created_at: String,
    /// The number of virtual CPUs.
    cpus: u32,
    /// The disk space in MiB.
    disk_mb: u32,
    /// The id of the environment, for calls of the other tools.
    environment_id: String,
    image: String,
    /// With fork_of and saved: true if the other environment's programs go on in this one; false if it has only the
    /// files. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<bool>,
    /// The memory in MiB.
    memory_mb: u32,
    name: String,
    runtime: &'static str,
    status: &'static str,
    /// The idle timeout, such as `30m0s`.
    timeout: String,
}

/// The origin of a new environment.
enum Origin {
    Image(Runtime),
    Fork { id: EnvironmentId, waits: bool },
    Saved(SavedName),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DestroyArguments {
    /// The environment's id, as returned by create_environment. Required, except with saved.
    environment_id: Option<String>,
    /// A name, to save the environment before it is destroyed: its files, memory and running programs, for
    /// create_environment with saved. Replaces what you have saved under this name. If saving fails, the environment is
    /// not destroyed.
    save_as: Option<String>,
    /// The name of one of your saved environments, to delete it.
    saved: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Destroyed {
    message: String,
    /// With save_as: the name of the saved environment; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    saved: Option<String>,
    /// With save_as: the size of the saved environment in bytes; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
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
    /// Your saved environments, oldest first, for create_environment with saved; absent if there are none.
    #[serde(skip_serializing_if = "<[ListedSaved]>::is_empty")]
    #[schemars(default)]
    saved: &'a [ListedSaved],
    /// Why your saved environments cannot be listed or used now; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default)]
    saved_unavailable: Option<String>,
    /// True if you have more environments, or saved ones, than one call can list; absent otherwise.
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
    /// False if the environment was suspended and came back without its memory, so that the programs that ran before
    /// have ended; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<bool>,
    /// The memory in MiB.
    memory_mb: u32,
    name: String,
    runtime: &'static str,
    /// `creating`, `running`, `suspending`, `suspended`, `resuming`, `destroying` or `error`. A call to a suspended
    /// environment brings it back.
    status: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ListedSaved {
    name: String,
    runtime: &'static str,
    /// The time when the environment was saved, as RFC 3339.
    saved_at: String,
    size_bytes: u64,
}

pub(super) fn create_environment() -> ServedTool {
    ServedTool::new(
        "create_environment",
        "Create environment",
        "Create an isolated Linux machine with its own kernel and file system, and wait until it runs (some seconds). \
         Returns its environment_id, which all other tools except list_environments need. Choose the language that \
         you use most; code in another language runs too if its interpreter is installed. With fork_of or saved, the \
         new machine has the state of another one instead. Destroy the environment when you are done.",
        ToolAnnotations::new().read_only(false).destructive(false).idempotent(false).open_world(false),
        |services, arguments, context| services.create_environment(arguments, context).boxed(),
    )
    .with_alias("runtime", "language")
    .with_result::<CreatedResult>()
    .with_tasks(RESULT_BYTES_MAX)
}

pub(super) fn destroy_environment() -> ServedTool {
    ServedTool::new(
        "destroy_environment",
        "Destroy environment",
        "Stop an environment and delete everything in it, files included. This cannot be undone, except with save_as, \
         which saves the environment under a name first. Destroying a destroyed environment does nothing. With saved, \
         delete a saved environment instead.",
        ToolAnnotations::new().read_only(false).destructive(true).idempotent(true).open_world(false),
        |services, arguments, context| services.destroy_environment(arguments, context).boxed(),
    )
    .with_result::<Destroyed>()
}

pub(super) fn list_environments() -> ServedTool {
    ServedTool::new(
        "list_environments",
        "List environments",
        "List your environments, oldest first, with their ids, runtimes and states, and your saved environments. \
         Running environments accept calls, and suspended ones come back at a call.",
        ToolAnnotations::new().read_only(true).destructive(false).idempotent(true).open_world(false),
        |services, ListArguments {}, context| ready(services.list_environments(context)).boxed(),
    )
    .with_result::<Listed<'static>>()
    .with_large_results()
}

impl Services {
    async fn create_environment(&self, arguments: CreateArguments, context: &CallContext) -> Outcome {
        let origin = origin_of(&arguments)?;
        let name = arguments.name.filter(|name| !name.is_empty()).map(|name| EnvironmentName::parse(&name));
        let name = name.transpose().map_err(ArgumentFault::Name)?;
        let network = arguments.network.map(|network| network.parse::<Policy>());
        let network = network.transpose().map_err(ArgumentFault::Network)?;
        let idle_timeout = Self::idle_timeout(arguments.timeout_minutes)?;
        let owner = context.owner.clone();
        let CreateArguments { cpus, memory_mb, disk_mb, .. } = arguments;
        let variables = arguments.environment.map(Variables::parse).transpose().map_err(ArgumentFault::Variables)?;
        let stages = on_stage(context.progress.clone());
        let chosen_image = arguments.image.as_deref().filter(|image| !image.is_empty());
        let variation = Variation {
            owner: owner.clone(),
            name: name.clone(),
            idle_timeout,
            runtime: arguments.language.map(Runtime::from),
            network: network.clone(),
            image: match (&origin, chosen_image) {
                (Origin::Image(_), _) | (_, None) => None,
                (Origin::Fork { .. } | Origin::Saved(_), Some(image)) => {
                    Some(ImageRef::Registry(image.parse().map_err(ArgumentFault::Image)?))
                }
            },
            size: SizeChoice { cpus, memory_mib: memory_mb, disk_mib: disk_mb, max: self.defaults.sizes.max },
            variables: variables.clone(),
        };
        // Dropping a future cancels the creation and destroys the unfinished environment.
        let (created, has_source) = match origin {
            Origin::Image(runtime) => {
                let (image, pull_rights) = self.image(runtime, chosen_image)?;
                let new = NewEnvironment {
                    owner,
                    name,
                    runtime,
                    image,
                    pull_rights,
                    size: SizeArguments { cpus, memory_mb, disk_mb }.size(&self.defaults.sizes)?,
                    variables: variables.unwrap_or_default(),
                    idle_timeout: idle_timeout.unwrap_or(self.defaults.idle_timeout),
                    network,
                };
                (context.unless_cancelled(self.environments.create(new, stages)).await?, false)
            }
            Origin::Fork { id, waits } => {
                let wait = waits.then_some(self.defaults.fork_wait);
                context.progress.stage(0.0, Some(STAGES), "copying the machine");
                (context.unless_cancelled(self.environments.fork(id, variation, wait, stages)).await?, true)
            }
            Origin::Saved(name) => {
                context.progress.stage(0.0, Some(STAGES), "reading the saved machine");
                (context.unless_cancelled(self.environments.create_saved(name, variation, stages)).await?, true)
            }
        };
        let Created { environment, agent_origin, memory } = created;
        let mut result = results::object(&CreatedResult {
            created_at: formats::rfc3339(environment.created_at),
            cpus: environment.size.cpus,
            disk_mb: environment.size.disk_mib,
            environment_id: environment.id.to_string(),
            image: environment.image.short_name(),
            memory: has_source.then_some(memory),
            memory_mb: environment.size.memory_mib,
            name: environment.name.as_str().to_owned(),
            runtime: environment.runtime.name(),
            status: environment.state().name(),
            timeout: duration::format(environment.idle_timeout),
        })?;
        result.meta.get_or_insert_default().0.insert(AGENT_META.to_owned(), json!(agent_origin_name(agent_origin)));
        Ok(result)
    }

    /// Returns the image that a client has chosen, or else the image of the runtime, and the rights to pull it.
    fn image(&self, runtime: Runtime, chosen: Option<&str>) -> Result<(ImageRef, PullRights), ArgumentFault> {
        let images = &self.defaults.images;
        let Some(chosen) = chosen else {
            return Ok((images.of(runtime).clone(), PullRights::Operator));
        };
        let chosen: RegistryRef = chosen.parse().map_err(ArgumentFault::Image)?;
        let rights = self.defaults.allowed_images.rights(&chosen, images).map_err(ArgumentFault::ImageNotAllowed)?;
        Ok((ImageRef::Registry(chosen), rights))
    }

    async fn destroy_environment(&self, arguments: DestroyArguments, context: &CallContext) -> Outcome {
        let DestroyArguments { environment_id, save_as, saved } = arguments;
        let id = match (environment_id, saved) {
            (Some(_), Some(_)) => return Err(ArgumentFault::Exclusive { names: "environment_id and saved" }.into()),
            (None, None) => return Err(ArgumentFault::OneRequired { names: "environment_id or saved" }.into()),
            (None, Some(_)) if save_as.is_some() => {
                return Err(ArgumentFault::Exclusive { names: "save_as and saved" }.into());
            }
            (None, Some(name)) => return self.remove_saved(parse_saved("saved", &name)?, context).await,
            (Some(id), None) => parse_id(&id)?,
        };
        let Some(name) = save_as else {
            context.progress.stage(0.0, None, "destroying the environment");
            self.environments.destroy(&context.owner, id).await?;
            return destroyed(format!("Environment {id} has been destroyed"), None);
        };
        let name = parse_saved("save_as", &name)?;
        context.progress.stage(0.0, None, "saving the environment");
        let entry = self.environments.save(&context.owner, id, name.clone()).await?;
        let message = format!("Environment {id} has been saved as {:?} and destroyed", name.as_str());
        destroyed(message, Some((name, entry.bytes)))
    }

    async fn remove_saved(&self, name: SavedName, context: &CallContext) -> Outcome {
        context.progress.stage(0.0, None, "deleting the saved environment");
        let message = format!("Saved environment {:?} has been deleted", name.as_str());
        self.environments.remove_saved(&context.owner, name).await?;
        destroyed(message, None)
    }

    fn list_environments(&self, context: &CallContext) -> Outcome {
        let environments = self.environments.list(&context.owner);
        let environments: Vec<_> = environments.iter().map(|environment| self.listed(environment)).collect();
        let saved = self.environments.saved(&context.owner);
        let saves_left_out = saved.len() > SAVED_LISTED_MAX;
        let saved: Vec<_> = saved.iter().take(SAVED_LISTED_MAX).map(listed_saved).collect();
        let saved_fault = self.environments.saved_fault();
        results::list(environments.len(), |count| Listed {
            count,
            environments: environments.get(..count).unwrap_or_default(),
            saved: &saved,
            saved_unavailable: saved_fault.as_ref().map(ToString::to_string),
            truncated: count < environments.len() || saves_left_out,
        })
    }

    fn idle_timeout(minutes: Option<f64>) -> Result<Option<Duration>, ArgumentFault> {
        match minutes {
            Some(minutes) if minutes > IDLE_MINUTES_MAX => {
                Err(ArgumentFault::AboveMaximum { name: "timeout_minutes", value: minutes, max: IDLE_MINUTES_MAX })
            }
            Some(minutes) if minutes > 0.0 => Ok(Some(Duration::from_secs_f64(minutes * 60.0))),
            Some(_) | None => Ok(None),
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
            memory: environment.memory_lost.then_some(false),
            memory_mb: environment.size.memory_mib,
            name: environment.name.as_str().to_owned(),
            runtime: environment.runtime.name(),
            status: environment.state().name(),
        }
    }
}

/// Returns the function that reports the stages of a start.
fn on_stage(progress: Progress) -> impl Fn(Stage) + Send {
    move |stage| {
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
    }
}

/// Returns what the arguments want the environment to be made from.
fn origin_of(arguments: &CreateArguments) -> Result<Origin, ArgumentFault> {
    let waits = arguments.wait == Some(true);
    if waits && arguments.fork_of.is_none() {
        return Err(ArgumentFault::OnlyWith { name: "wait", other: "fork_of" });
    }
    match (&arguments.fork_of, &arguments.saved) {
        (Some(_), Some(_)) => Err(ArgumentFault::Exclusive { names: "fork_of and saved" }),
        (Some(id), None) => Ok(Origin::Fork { id: id.parse().map_err(ArgumentFault::ForkOf)?, waits }),
        (None, Some(name)) => Ok(Origin::Saved(parse_saved("saved", name)?)),
        (None, None) => {
            let language = arguments.language.ok_or(ArgumentFault::OneRequired { names: "language, fork_of or saved" });
            Ok(Origin::Image(language?.into()))
        }
    }
}

fn parse_saved(name: &'static str, text: &str) -> Result<SavedName, ArgumentFault> {
    SavedName::parse(text).map_err(|source| ArgumentFault::SavedName { name, source })
}

fn destroyed(message: String, saved: Option<(SavedName, u64)>) -> Outcome {
    let (saved, size_bytes) = saved.map(|(name, bytes)| (name.as_str().to_owned(), bytes)).unzip();
    results::object(&Destroyed { message, saved, size_bytes, status: "destroyed" })
}

fn listed_saved(entry: &SavedEntry) -> ListedSaved {
    let name = match &entry.key {
        SavedKey::Name(name) => name.as_str(),
        SavedKey::Suspended(_) => entry.about.name.as_str(),
    };
    ListedSaved {
        name: name.to_owned(),
        runtime: entry.about.runtime.name(),
        saved_at: formats::rfc3339(entry.saved_at),
        size_bytes: entry.bytes,
    }
}

fn agent_origin_name(origin: AgentOrigin) -> &'static str {
    match origin {
        AgentOrigin::Host => "host",
        AgentOrigin::Image => "image",
    }
}
