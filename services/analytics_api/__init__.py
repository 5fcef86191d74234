"""What people look at: figures of walkthroughs over HTTP and MCP, and the dashboard."""
