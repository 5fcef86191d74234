import { defineConfig } from "vitest/config";

export default defineConfig({
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2023",
    chunkSizeWarningLimit: 800,
  },
  test: { include: ["tests/**/*.test.ts"], isolate: false, maxWorkers: 2, testTimeout: 60_000 },
});
