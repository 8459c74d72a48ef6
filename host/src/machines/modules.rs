// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The modules that a guest needs from a kernel folder, in the order in which the guest loads them.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::modinfo::{self, plain};

/// The modules that a guest needs: for its devices, its two file systems, its link and its randomness.
const WANTED: [&str; 6] = ["virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport", "overlay", "erofs", "virtio_rng"];
/// Size limit of a module file. The largest of the wanted modules is under 1 MiB.
const MODULE_BYTES_MAX: u64 = 16 << 20;
/// Maximum number of modules, dependencies included. A guest needs about a dozen. A folder that exceeds the
/// limit is damaged.
const MODULES_MAX: usize = 64;

/// One module to load.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Module {
    /// The file name, such as `overlay.ko`.
    pub(super) file_name: String,
    pub(super) content: Vec<u8>,
}

/// The reason why the guest's modules could not be collected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleFault {
    /// A list of modules or a module file cannot be read.
    #[error("failed to read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The module is neither in `modules.order` nor in `modules.builtin`.
    #[error("the kernel in {} has no module {name}", folder.display())]
    Missing { name: String, folder: PathBuf },
    /// The module is compressed or damaged.
    #[error("{} must be an uncompressed kernel module; unpack .ko.xz and .ko.zst files first", path.display())]
    NotPlain { path: PathBuf },
    #[error("{} is too large for a kernel module; must have at most {MODULE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("the guest needs more than {MODULES_MAX} modules from {}; the folder may be damaged", folder.display())]
    TooMany { folder: PathBuf },
}

/// Reads the wanted modules and their dependencies from a folder with the layout of `/lib/modules/<version>`.
///
/// # Errors
/// [`ModuleFault`], which names the file, the folder or the module.
pub(super) fn load_order(folder: &Path) -> Result<Vec<Module>, ModuleFault> {
    let files = listed(&folder.join("modules.order"))?;
    let built_in = listed(&folder.join("modules.builtin"))?;
    let mut resolver = Resolver { folder, files, built_in, order: Vec::new(), seen: Vec::new() };
    for name in WANTED {
        resolver.add(name, Need::Hard)?;
    }
    Ok(resolver.order)
}

/// Reads a list such as `modules.order` into a map from each module's name to its path.
fn listed(list: &Path) -> Result<HashMap<String, String>, ModuleFault> {
    let text = fs::read_to_string(list).map_err(|source| ModuleFault::Read { path: list.to_owned(), source })?;
    Ok(text.lines().map(|path| (name_of(path), path.to_owned())).collect())
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    plain(file.split('.').next().unwrap_or(file))
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Need {
    Hard,
    Soft,
}

struct Resolver<'a> {
    folder: &'a Path,
    files: HashMap<String, String>,
    built_in: HashMap<String, String>,
    order: Vec<Module>,
    seen: Vec<String>,
}

impl Resolver<'_> {
    // Depth first: a module's dependencies precede the module. `seen` prevents an endless recursion if modules depend
    // on each other.
    fn add(&mut self, name: &str, need: Need) -> Result<(), ModuleFault> {
        if self.built_in.contains_key(name) || self.seen.iter().any(|seen| seen == name) {
            return Ok(());
        }
        let Some(listed) = self.files.get(name) else {
            return match need {
                Need::Soft => Ok(()),
                Need::Hard => Err(ModuleFault::Missing { name: name.to_owned(), folder: self.folder.to_owned() }),
            };
        };
        if self.seen.len() == MODULES_MAX {
            return Err(ModuleFault::TooMany { folder: self.folder.to_owned() });
        }
        self.seen.push(name.to_owned());
        let path = self.folder.join(listed);
        let content = read(&path)?;
        let needs = modinfo::needs(&content).ok_or(ModuleFault::NotPlain { path })?;
        for soft in &needs.soft {
            self.add(soft, Need::Soft)?;
        }
        for needed in &needs.depends {
            self.add(needed, Need::Hard)?;
        }
        self.order.push(Module { file_name: format!("{name}.ko"), content });
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleFault> {
    let unreadable = |source: io::Error| {
        // A compressed module is listed as `x.ko` although its file is `x.ko.xz`.
        if source.kind() == io::ErrorKind::NotFound {
            ModuleFault::NotPlain { path: path.to_owned() }
        } else {
            ModuleFault::Read { path: path.to_owned(), source }
        }
    };
    if fs::metadata(path).map_err(unreadable)?.len() > MODULE_BYTES_MAX {
        return Err(ModuleFault::TooLarge { path: path.to_owned() });
    }
    fs::read(path).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::{super::modinfo::module, *};

    /// Creates a kernel's folder. `modules` are the names and the `.modinfo` contents of the module files.
    fn folder(modules: &[(&str, &str)], built_in: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let list =
            |names: &mut dyn Iterator<Item = &str>| names.map(|n| format!("kernel/{n}.ko\n")).collect::<String>();
        fs::create_dir(folder.path().join("kernel")).unwrap();
        for (name, info) in modules {
            fs::write(folder.path().join(format!("kernel/{name}.ko")), module(info.as_bytes())).unwrap();
        }
        fs::write(folder.path().join("modules.order"), list(&mut modules.iter().map(|(name, _)| *name))).unwrap();
        fs::write(folder.path().join("modules.builtin"), list(&mut built_in.iter().copied())).unwrap();
        folder
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.file_name.as_str()).collect()
    }

    const REST: [(&str, &str); 4] = [
        ("virtio_mmio", "depends=\0"),
        ("virtio_blk", "depends=\0"),
        ("overlay", "depends=\0"),
        ("virtio-rng", "depends=\0"),
    ];

    #[test]
    fn dependencies_come_first_and_built_in_modules_are_left_out() {
        let mut modules = REST.to_vec();
        modules.extend([
            ("vmw_vsock_virtio_transport", "depends=virtio,vsock\0"),
            ("vsock", "depends=\0"),
            ("erofs", "depends=libcrc32c\0"),
            ("libcrc32c", "softdep=pre: crc32c\0depends=\0"),
        ]);
        let folder = folder(&modules, &["virtio"]);
        let order = load_order(folder.path()).unwrap();
        let expected = [
            "virtio_mmio.ko",
            "virtio_blk.ko",
            "vsock.ko",
            "vmw_vsock_virtio_transport.ko",
            "overlay.ko",
            "libcrc32c.ko",
            "erofs.ko",
            "virtio_rng.ko",
        ];
        assert_eq!(names(&order), expected);
    }

    #[test]
    fn modules_that_depend_on_each_other_load_once() {
        let mut modules = REST.to_vec();
        modules.extend([
            ("vmw_vsock_virtio_transport", "depends=erofs\0"),
            ("erofs", "depends=vmw_vsock_virtio_transport\0"),
        ]);
        assert_eq!(load_order(folder(&modules, &[]).path()).unwrap().len(), 6);
    }

    #[test]
    fn error_names_the_missing_module() {
        let fault = load_order(folder(&REST, &[]).path()).unwrap_err();
        assert!(matches!(&fault, ModuleFault::Missing { name, .. } if name == "vmw_vsock_virtio_transport"), "{fault}");
    }

    #[test]
    fn rejects_compressed_modules() {
        let folder = folder(&REST, &[]);
        fs::rename(folder.path().join("kernel/virtio_mmio.ko"), folder.path().join("kernel/virtio_mmio.ko.xz"))
            .unwrap();
        assert!(matches!(load_order(folder.path()).unwrap_err(), ModuleFault::NotPlain { .. }));
    }
}
