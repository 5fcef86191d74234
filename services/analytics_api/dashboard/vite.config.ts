import { defineConfig } from "vite";

export default defineConfig({
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2023",
    chunkSizeWarningLimit: 800,
  },
});
