// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
// Makes Node run code as if its file were in the working directory. Node loads this file first (`--require`), also in
// the workers and forks of a program. Node is told to run a script that does not exist in the working directory. This file
// supplies the script's code, from the file of the same name in the folder `code` beside this file.
'use strict';

const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const { fileURLToPath, pathToFileURL } = require('node:url');
const vm = require('node:vm');

const CODE = path.join(__dirname, 'code');
const CODE_NAME = /^waggle_[0-9a-f]{12}\.js$/;

// The errors with which V8 rejects the syntax of a module in a script. Node has the same list, and then runs the file as
// a module (nodejs.org/api/packages.html, "Syntax detection").
const MODULE_ERRORS = [
  'Cannot use import statement outside a module',
  "Unexpected token 'export'",
  "Cannot use 'import.meta' outside a module",
  'await is only valid in async functions and the top level bodies of modules',
  "Identifier '__dirname' has already been declared",
  "Identifier '__filename' has already been declared",
  "Identifier 'exports' has already been declared",
  "Identifier 'module' has already been declared",
  "Identifier 'require' has already been declared",
];

const loaded = new Map();

// Returns the source and the format of the code that takes the place of a file; undefined for all other files.
function codeOf(file) {
  if (!CODE_NAME.test(path.basename(file))) return undefined;
  if (!loaded.has(file)) {
    let code;
    try {
      const source = fs.readFileSync(path.join(CODE, path.basename(file)), 'utf8');
      code = { url: pathToFileURL(file).href, source, format: formatOf(source, file) };
    } catch {
      // The call has ended, or the name is a coincidence.
    }
    loaded.set(file, code);
  }
  return loaded.get(file);
}

function formatOf(source, file) {
  const type = packageType(path.dirname(file));
  if (type === 'module' || type === 'commonjs') return type;
  try {
    new vm.Script(Module.wrap(source.replace(/^#!.*/, '')), { filename: file });
    return 'commonjs';
  } catch (fault) {
    return MODULE_ERRORS.some((text) => String(fault.message).includes(text)) ? 'module' : 'commonjs';
  }
}

// Returns the field `type` of the nearest package.json.
function packageType(folder) {
  try {
    return JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8')).type;
  } catch {
    const parent = path.dirname(folder);
    return parent === folder ? undefined : packageType(parent);
  }
}

function asFile(specifier) {
  try {
    return specifier.startsWith('file:') ? fileURLToPath(specifier) : specifier;
  } catch {
    return specifier;
  }
}

// The places from which modules find the packages in NODE_PATH, which Node itself searches only for `require`.
const installed = (process.env.NODE_PATH || '').split(path.delimiter).filter(path.isAbsolute);
const parents = installed.map((folder) => pathToFileURL(path.join(folder, '..', 'main.js')).href);

function mayBeInstalled(fault, specifier) {
  return fault.code === 'ERR_MODULE_NOT_FOUND' && !/^[./#]|^[a-z]+:/.test(specifier);
}

function useHooks() {
  Module.registerHooks({
    resolve(specifier, context, next) {
      const code = codeOf(asFile(specifier));
      if (code) return { url: code.url, format: code.format, shortCircuit: true };
      try {
        return next(specifier, context);
      } catch (fault) {
        if (!mayBeInstalled(fault, specifier)) throw fault;
        for (const parentURL of parents) {
          try {
            return next(specifier, { ...context, parentURL });
          } catch {
            // The next folder may have the package.
          }
        }
        throw fault;
      }
    },
    load(url, context, next) {
      const code = url.startsWith('file:') && codeOf(asFile(url));
      return code ? { format: code.format, source: code.source, shortCircuit: true } : next(url, context);
    },
  });
}

// The same for modules before Node 22.15, in the thread that those versions run hooks in.
const THREAD_HOOKS = `
  let code, parents;
  export function initialize(data) { ({ code, parents } = data); }
  export async function resolve(specifier, context, next) {
    if (specifier === code.url) return { url: code.url, format: 'module', shortCircuit: true };
    try {
      return await next(specifier, context);
    } catch (fault) {
      if (fault.code !== 'ERR_MODULE_NOT_FOUND' || /^[./#]|^[a-z]+:/.test(specifier)) throw fault;
      for (const parentURL of parents) {
        try { return await next(specifier, { ...context, parentURL }); } catch {}
      }
      throw fault;
    }
  }
  export async function load(url, context, next) {
    return url === code.url ? { format: 'module', source: code.source, shortCircuit: true } : next(url, context);
  }`;

// As Node runs a module: an error of it is an uncaught exception, and one that never ends has the exit status 13.
function runModule(url) {
  const unfinished = (status) => {
    if (status === 0) process.exitCode = 13;
  };
  process.once('exit', unfinished);
  const finished = () => process.removeListener('exit', unfinished);
  import(url).then(finished, (fault) => {
    finished();
    setImmediate(() => {
      throw fault;
    });
  });
}

function useInternals() {
  const resolve = Module._resolveFilename;
  Module._resolveFilename = function (request, ...rest) {
    return codeOf(request) ? request : Reflect.apply(resolve, this, [request, ...rest]);
  };
  const run = Module._extensions['.js'];
  Module._extensions['.js'] = function (module, file) {
    const code = codeOf(file);
    if (!code) return Reflect.apply(run, this, [module, file]);
    // Without `register` (before Node 18.19), Node's own error says that the syntax is that of a module.
    if (code.format === 'commonjs' || !Module.register) return module._compile(code.source, file);
    Module.register('data:text/javascript,' + encodeURIComponent(THREAD_HOOKS), { data: { code, parents } });
    runModule(code.url);
  };
}

if (Module.registerHooks) useHooks();
else useInternals();
