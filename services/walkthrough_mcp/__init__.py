"""The MCP layer: agents lead people through walkthroughs, and every completed step becomes one event."""
