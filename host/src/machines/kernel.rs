// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The folder that contains the guests' kernel: `vmlinuz`, `version`, and `modules/`, which has the layout of
//! `/lib/modules/<version>`.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::modules::{self, Module, ModuleFault};

/// A bzImage has this magic number at [`MAGIC_AT`] (`Documentation/arch/x86/boot.rst` in the kernel).
const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;

/// A kernel with the modules that guests need.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The bzImage.
    pub(super) image: PathBuf,
    /// The modules, in load order.
    pub(super) modules: Vec<Module>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelFault {
    #[error(
        "failed to read the guests' kernel {}; fetch a kernel with `./taskw kernel` (into target/kernel) or, \
         if waggle's Debian package is installed, with `/usr/lib/waggle/fetch-kernel FOLDER`, and set WAGGLE_KERNEL \
         to its folder",
        path.display()
    )]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a Linux kernel: an x86 bzImage has \"HdrS\" at offset 0x202", path.display())]
    NotAKernel { path: PathBuf },
    #[error("failed to read the modules of the guests' kernel")]
    Modules { source: ModuleFault },
}

impl Kernel {
    /// Checks the kernel and reads the modules.
    ///
    /// # Errors
    /// [`KernelFault`], which names the file.
    pub(super) fn open(folder: &Path) -> Result<Self, KernelFault> {
        let image = folder.join("vmlinuz");
        if !is_kernel(&image).map_err(|source| KernelFault::Read { path: image.clone(), source })? {
            return Err(KernelFault::NotAKernel { path: image });
        }
        let modules = modules::load_order(&folder.join("modules")).map_err(|source| KernelFault::Modules { source })?;
        Ok(Self { image, modules })
    }
}

fn is_kernel(path: &Path) -> io::Result<bool> {
    let mut start = [0; MAGIC_AT + MAGIC.len()];
    match File::open(path)?.read_exact(&mut start) {
        Ok(()) => Ok(start.ends_with(MAGIC)),
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fs};

    use super::*;

    #[test]
    fn error_names_a_file_that_is_not_a_kernel() {
        let folder = tempfile::tempdir().unwrap();
        for content in [&b"#!/bin/sh\n"[..], &[0; 4096]] {
            fs::write(folder.path().join("vmlinuz"), content).unwrap();
            let fault = Kernel::open(folder.path()).unwrap_err();
            assert!(matches!(&fault, KernelFault::NotAKernel { path } if path.ends_with("vmlinuz")), "{fault}");
        }
    }

    #[test]
    fn error_for_a_missing_kernel_says_how_to_get_one() {
        let folder = tempfile::tempdir().unwrap();
        let fault = Kernel::open(folder.path()).unwrap_err();
        assert!(fault.to_string().contains("./taskw kernel"), "{fault}");
        assert!(fault.source().is_some());
    }

    #[test]
    fn error_for_a_kernel_without_modules_names_the_missing_list() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = vec![0; 4096];
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        fs::write(folder.path().join("vmlinuz"), image).unwrap();
        let fault = Kernel::open(folder.path()).unwrap_err();
        assert!(fault.source().unwrap().to_string().contains("modules.order"), "{fault}");
    }
}
