// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! `waggle image`: pulls, lists, verifies and removes images. Servers may use the same cache at the same time.

use std::{
    error::Error,
    io::{self, Write},
};

use super::{
    open_machines::open_images,
    progress::PullProgress,
    quantities::{age, bytes},
};
use crate::{
    config::{ImageArguments, ImageCommand, process_variable},
    telemetry,
};
use serde_json::json;
use tokio::signal::ctrl_c;
use waggle_images::{
    cache::{CachedImage, EvictionRules, ImageStore, LeaseHolder, Removed, Resolve, Verified},
    reference::ImageRef,
};
use waggle_shared::printable;

/// Length of a digest in `ls`; long enough to identify an image uniquely.
const DIGEST_CHARS: usize = 12;

/// Maximum bytes of a cell: enough for the longest reference.
const CELL_BYTES_MAX: usize = 5000;

/// The log filter where `RUST_LOG` is unset.
const LOG_FILTER: &str = "warn";

/// The user interrupted the command.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; completely pulled layers are kept")]
struct Interrupted;

/// Some verified images are damaged.
#[derive(Debug, thiserror::Error)]
#[error(
    "damaged images: {count}; they were removed, and the next environment or `waggle image pull` merges or pulls them \
     again; environments that use them continue with the damaged files and should be created again; check the disk"
)]
struct Damaged {
    count: u32,
}

/// Runs a command of `waggle image`.
pub(super) fn run(arguments: &ImageArguments) -> Result<(), Box<dyn Error>> {
    telemetry::start(LOG_FILTER)?;
    let store = open_images(arguments.store.store(&process_variable)?)?;
    let mut out = io::stdout().lock();
    match &arguments.command {
        ImageCommand::Pull { images, json } => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let pulled = runtime.block_on(async {
                tokio::select! {
                    pulled = pull(&store, images, *json, &mut out) => pulled,
                    _ = ctrl_c() => Err(Interrupted.into()),
                }
            });
            // Waits for the cancelled merge, which stops at its next piece.
            drop(runtime);
            pulled
        }
        ImageCommand::Ls { json } => list(&store.list(), *json, &mut out),
        ImageCommand::Inspect { image, json } => inspect(&store.inspect(image)?, *json, &mut out),
        ImageCommand::Verify { images, json } => verify(&store, images, *json, &mut out),
        ImageCommand::Rm { images, json } => remove(&store, images, *json, &mut out),
        ImageCommand::Prune { all, json } => {
            let rules = if *all { EvictionRules::EVERYTHING } else { arguments.store.rules() };
            print_removed(store.prune(&rules), *json, &mut out)
        }
    }
}

async fn pull(store: &ImageStore, images: &[ImageRef], json: bool, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    for image in images {
        let shown = PullProgress::new(image.to_string());
        let prepared = store.prepare_with(image, Resolve::Always, &|progress| shown.report(progress.into())).await;
        shown.finish();
        prepared?;
        let listed = store.inspect(&image.to_string())?;
        if json {
            writeln!(out, "{}", serde_json::to_string(&listed)?)?;
        } else {
            writeln!(out, "pulled {image}: {}, {}", listed.digest, bytes(listed.merged_bytes))?;
        }
        out.flush()?;
    }
    Ok(())
}

fn list(all: &[CachedImage], json: bool, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    if json {
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(all)?)?);
    }
    let mut rows = vec![["IMAGE", "DIGEST", "SIZE", "LAYERS", "PULLED", "USED", "IN USE BY"].map(str::to_owned)];
    for listed in all {
        let names = if listed.references.is_empty() { vec!["(no name)"] } else { refs(listed) };
        for name in names {
            rows.push([
                name.to_owned(),
                short(&listed.digest),
                size(listed.merged_bytes),
                size(listed.pulled_bytes),
                listed.resolved_unix_s.map_or_else(|| "-".to_owned(), age),
                age(listed.used_unix_s),
                holders(&listed.users),
            ]);
        }
    }
    table(&rows, out)
}

fn refs(listed: &CachedImage) -> Vec<&str> {
    listed.references.iter().map(String::as_str).collect()
}

/// Returns the beginning of a digest, without the name of the algorithm.
fn short(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(DIGEST_CHARS).collect()
}

fn size(size: u64) -> String {
    if size == 0 { "-".to_owned() } else { bytes(size) }
}

fn holders(holders: &[LeaseHolder]) -> String {
    let describe = |holder: &LeaseHolder| match holder.uses {
        1 => format!("process {}", holder.pid),
        uses => format!("process {} ({uses} times)", holder.pid),
    };
    if holders.is_empty() { "-".to_owned() } else { holders.iter().map(describe).collect::<Vec<_>>().join(", ") }
}

/// Writes the rows as a table. Each column has the width of its widest cell.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    // References are from the cache, which may hold those of another version.
    let rows: Vec<_> =
        rows.iter().map(|row| row.each_ref().map(|cell| printable::text(cell, CELL_BYTES_MAX))).collect();
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn inspect(listed: &CachedImage, json: bool, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    if json {
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(listed)?)?);
    }
    let rows = [
        ["names".to_owned(), refs(listed).join(", ")],
        ["named by".to_owned(), if listed.of_clients { "clients" } else { "the operator" }.to_owned()],
        ["digest".to_owned(), listed.digest.clone()],
        ["size".to_owned(), size(listed.merged_bytes)],
        ["layers".to_owned(), size(listed.pulled_bytes)],
        ["pulled".to_owned(), listed.resolved_unix_s.map_or_else(|| "-".to_owned(), age)],
        ["used".to_owned(), age(listed.used_unix_s)],
        ["in use by".to_owned(), holders(&listed.users)],
    ];
    table(&rows, out)
}

/// Verifies images, or all images in the cache if `images` is empty. Damaged ones are removed.
fn verify(store: &ImageStore, images: &[String], json: bool, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let all = || store.list().into_iter().map(|image| image.digest).collect();
    let names: Vec<_> = if images.is_empty() { all() } else { images.to_vec() };
    let mut rows = vec![["DIGEST", "STATE", "IMAGE"].map(str::to_owned)];
    let (mut listed, mut damaged) = (Vec::new(), 0);
    for name in names {
        let (image, state) = (store.inspect(&name)?, store.verify(&name)?);
        damaged += u32::from(state == Verified::Damaged);
        listed.push(json!({"digest": image.digest, "references": image.references, "state": state}));
        rows.push([short(&image.digest), describe(state).to_owned(), refs(&image).join(", ")]);
    }
    if json {
        writeln!(out, "{:#}", json!(listed))?
    } else {
        table(&rows, out)?
    }
    if damaged > 0 { Err(Damaged { count: damaged }.into()) } else { Ok(()) }
}

fn describe(state: Verified) -> &'static str {
    match state {
        Verified::Whole => "whole",
        Verified::Damaged => "damaged",
        Verified::NotMerged => "not merged",
    }
}

fn remove(store: &ImageStore, images: &[String], json: bool, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut sum = Removed::default();
    for image in images {
        sum += store.remove(image)?;
    }
    print_removed(sum, json, out)
}

fn print_removed(removed: Removed, json: bool, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    if json {
        return Ok(writeln!(out, "{}", json!(removed))?);
    }
    let Removed { images, files, bytes: freed } = removed;
    Ok(writeln!(out, "removed {images} images and {files} other files, {}", bytes(freed))?)
}
