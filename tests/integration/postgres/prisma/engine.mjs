// Prisma's schema engine without its command line, whose native binaries can't be had everywhere.
//
// Reads one JSON request on stdin and writes one JSON answer on stdout:
//   {"do": "script", "prisma": "..."}                               -> {"output": the SQL that makes the schema}
//   {"do": "drift", "prisma": "...", "url": "...", "schema": "..."} -> {"output": what differs, "" when nothing does}
//   {"do": "push", "prisma": "...", "url": "...", "schema": "..."}  -> {"output": the number of steps executed}
// or {"error": "..."}. What the engine logs goes to stderr.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

import { PrismaPg } from "@prisma/adapter-pg";
import { bindMigrationAwareSqlAdapterFactory, ColumnTypeEnum } from "@prisma/driver-adapter-utils";
import * as glue from "@prisma/schema-engine-wasm/schema_engine_bg";
import pg from "pg";

const PATH = "schema.prisma";
const NO_FILTER = { externalTables: [], externalEnums: [] };
const NO_DIFFERENCE = 0;
const DIFFERENCE = 2;

// Column types of the catalogues that the adapter refuses, and the ones it knows that read the same:
// "char" as bpchar, an array of name as an array of text.
const READ_AS = new Map([
  [18, 1042],
  [1003, 1009],
]);

// Where the engine leaves a panic's words, before it traps.
globalThis.PRISMA_WASM_PANIC_REGISTRY = { set_message: (message) => process.stderr.write(`${message}\n`) };

// node imports .wasm files behind a flag only, so the module is put together by hand.
async function loadEngine() {
  const entry = createRequire(import.meta.url).resolve("@prisma/schema-engine-wasm");
  const wasm = await WebAssembly.compile(readFileSync(join(dirname(entry), "schema_engine_bg.wasm")));
  const instance = await WebAssembly.instantiate(wasm, { "./schema_engine_bg.js": glue });
  glue.__wbg_set_wasm(instance.exports);
  instance.exports.__wbindgen_start();
  return glue.SchemaEngine;
}

// PostgreSQL 18 lists NOT NULL among the constraints, which this engine does not expect; it compares columns for that.
function withoutNotNull(result) {
  const place = (result.fields ?? []).findIndex((field) => field.name === "constraint_type");
  if (place >= 0) {
    result.rows = result.rows.filter((row) => (row[place] ?? row.constraint_type) !== "n");
  }
}

// A pool whose answers hold only column types that the adapter knows.
function cataloguePool(url) {
  const pool = new pg.Pool({ connectionString: url });
  const query = pool.query.bind(pool);
  pool.query = async (...args) => {
    const result = await query(...args);
    withoutNotNull(result);
    for (const field of result.fields ?? []) {
      field.dataTypeID = READ_AS.get(field.dataTypeID) ?? field.dataTypeID;
    }
    return result;
  };
  return pool;
}

// Stands in for a database where SQL is made from nothing: all that the engine asks of it is its version.
function stubFactory() {
  const version = {
    columnNames: ["exists", "version", "numeric_version"],
    columnTypes: [ColumnTypeEnum.Boolean, ColumnTypeEnum.Text, ColumnTypeEnum.Int32],
    rows: [[true, "PostgreSQL 16.0", 160000]],
  };
  const adapter = {
    provider: "postgres",
    adapterName: "stub",
    queryRaw: async () => version,
    executeRaw: async () => 0,
    executeScript: async () => {},
    startTransaction: async () => adapter,
    getConnectionInfo: () => ({ schemaName: "public", supportsRelationJoins: true }),
    dispose: async () => {},
  };
  const connect = async () => adapter;
  return { provider: "postgres", adapterName: "stub", connect, connectToShadowDb: connect };
}

async function push(engine, files) {
  const pushed = await engine.schemaPush({ force: false, schema: { files }, filters: NO_FILTER });
  const refused = [...pushed.unexecutable, ...pushed.warnings];
  if (refused.length > 0) {
    throw new Error(refused.join("; "));
  }
  return String(pushed.executedSteps);
}

async function diff(engine, files, from, script) {
  const to = { tag: "schemaDatamodel", files };
  const { exitCode, stdout } = await engine.diff({ from, to, script, exitCode: true, filters: NO_FILTER });
  if (exitCode !== NO_DIFFERENCE && exitCode !== DIFFERENCE) {
    throw new Error(`the engine's exit code is ${exitCode}`);
  }
  return exitCode === NO_DIFFERENCE ? "" : stdout;
}

async function answer(request, factory) {
  const SchemaEngine = await loadEngine();
  const log = (line) => process.stderr.write(`${line}\n`);
  const engine = await SchemaEngine.new({ datamodels: [[PATH, request.prisma]] }, log, factory);
  const files = [{ path: PATH, content: request.prisma }];
  switch (request.do) {
    case "script":
      return diff(engine, files, { tag: "empty" }, true);
    case "drift":
      return diff(engine, files, { tag: "schemaDatasource", files, configDir: "." }, false);
    case "push":
      return push(engine, files);
    default:
      throw new Error(`no such request: ${request.do}`);
  }
}

// The engine names an error of the adapter by number only; the adapter's registry has the error itself.
function explain(error, factory) {
  const message = error?.message ?? String(error);
  const number = /External error id#(\d+)/.exec(message);
  const cause = number && factory.errorRegistry.consumeError(Number(number[1]))?.error;
  return cause ? `${message}: ${cause.stack ?? cause}` : message;
}

const request = JSON.parse(readFileSync(0, "utf8"));
const { url, schema } = request;
const factory = bindMigrationAwareSqlAdapterFactory(
  url === undefined ? stubFactory() : new PrismaPg(cataloguePool(url), { schema }),
);
const reply = await answer(request, factory).then(
  (output) => ({ output }),
  (error) => ({ error: explain(error, factory) }),
);
// The pool's idle connections would keep node alive for seconds.
process.stdout.write(JSON.stringify(reply), () => process.exit(0));
