// mcp-go. Argument: `newest` or `sessions`; stdin and stdout as in walk.
package main

import (
	"context"
	"os"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"

	"stepstream/agents/walk"
)

func main() {
	version := map[string]string{"newest": "2026-07-28", "sessions": "2025-11-25"}[os.Args[1]]
	ctx := context.Background()
	walk.LeadAll(func(person walk.Person) (walk.Call, func()) {
		http := walk.Must(transport.NewStreamableHTTP(person.URL, transport.WithHTTPHeaders(person.Headers())))
		agent := client.NewClient(http, client.WithProtocolVersion(version))
		walk.Must(0, agent.Start(ctx))
		hello := mcp.InitializeRequest{}
		hello.Params.ClientInfo = mcp.Implementation{Name: "agent", Version: "1"}
		hello.Params.ProtocolVersion = version
		walk.Must(agent.Initialize(ctx, hello))
		call := func(tool string, arguments map[string]any) (any, error) {
			request := mcp.CallToolRequest{}
			request.Params.Name, request.Params.Arguments = tool, arguments
			result, err := agent.CallTool(ctx, request)
			if err != nil {
				return nil, err
			}
			return result.StructuredContent, nil
		}
		return call, func() { agent.Close() }
	})
}
