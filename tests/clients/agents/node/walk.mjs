// What each program in JavaScript has in common: who is led, how, and the record of it. Lines of stdin and stdout, and
// the habits, are as in python/walk.py.
import { createInterface } from "node:readline";

const DONE = new Set(["advanced", "finished", "repeated", "already-finished"]);

// Leads everybody on stdin, one after another. `connect(person)` opens a connection: `call(tool, arguments)` returns
// the structured content, and `close()` ends it.
export async function leadAll(connect) {
  for await (const line of createInterface({ input: process.stdin })) {
    const [url, token, habit, most] = line.split(" ");
    const headers = token === "-" ? {} : { Authorization: `Bearer ${token}` };
    const person = { url, headers, habit, most: Number(most) };
    console.log(JSON.stringify(await lead(connect, person)));
  }
}

async function lead(connect, person) {
  const alone = (tool, values) => connected(connect, person, (call) => call(tool, values));
  if (person.habit === "anew") return walk(alone, person);
  if (person.habit === "loses") {
    return walk((tool, values) => alone(tool, values).catch(() => alone(tool, values)), person);
  }
  return connected(connect, person, (call) => walk(call, person));
}

async function connected(connect, person, act) {
  const connection = await connect(person);
  try {
    return await act(connection.call);
  } finally {
    await connection.close();
  }
}

async function walk(call, { habit, most }) {
  let answer = await call("start_walkthrough", {});
  const steps = [];
  while (answer.step && steps.length < most) {
    const step = answer.step.id;
    const values = habit === "unnamed" ? {} : { current_step_id: step };
    if (answer.visitor && habit !== "forgets") values.visitor = answer.visitor;
    if (habit === "repeats") await call("get_next_step", values);
    answer = await call("get_next_step", values);
    if (DONE.has(answer.outcome)) steps.push(step);
  }
  return { steps, last: answer.outcome };
}
