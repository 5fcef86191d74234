// Holds the values of stdin, one a line of JSON, against the contract in the form of HTTP, and prints each refusal's class; for
// tests.
import { readFileSync } from "node:fs";
import { check } from "@stepstream/client";

const lines = readFileSync(0, "utf8").split("\n");
for (const line of lines.filter((one) => one !== "")) {
  console.log(check(JSON.parse(line) as unknown, Date.now(), "http")?.class ?? "");
}
