// The Inspector's command line, which opens a connection for each call. Argument: `newest` or `sessions`; stdin and
// stdout as in walk.mjs.
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { leadAll } from "./walk.mjs";

const era = { newest: "modern", sessions: "legacy" }[process.argv[2]];
const found = createRequire(import.meta.url).resolve("@modelcontextprotocol/inspector/package.json");
const program = join(dirname(found), "clients", "cli", "build", "index.js");
const run = promisify(execFile);
// It keeps what it knows of servers there.
const HOME = mkdtempSync(join(tmpdir(), "inspector-"));
process.on("exit", () => rmSync(HOME, { recursive: true }));

await leadAll(async ({ url, headers }) => ({
  call: async (tool, values) => {
    const options = [
      ...[url, "--transport", "http", "--protocol-era", era, "--format", "json", "--quiet"],
      ...Object.entries(headers).flatMap(([name, value]) => ["--header", `${name}: ${value}`]),
      ...["--method", "tools/call", "--tool-name", tool, "--tool-args-json", JSON.stringify(values)],
    ];
    const env = { ...process.env, HOME };
    const { stdout } = await run(process.execPath, [program, ...options], { env });
    return JSON.parse(stdout).result.structuredContent;
  },
  close: () => {},
}));
