// The Go SDK. Argument: `newest` or `sessions`; stdin and stdout as in walk.
package main

import (
	"context"
	"net/http"
	"os"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"stepstream/agents/walk"
)

// signed puts headers into each request.
type signed map[string]string

func (s signed) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	for name, value := range s {
		request.Header.Set(name, value)
	}
	return http.DefaultTransport.RoundTrip(request)
}

func main() {
	version := map[string]string{"newest": "2026-07-28", "sessions": "2025-11-25"}[os.Args[1]]
	ctx := context.Background()
	walk.LeadAll(func(person walk.Person) (walk.Call, func()) {
		client := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil)
		session := walk.Must(client.Connect(ctx, &mcp.StreamableClientTransport{
			Endpoint:   person.URL,
			HTTPClient: &http.Client{Transport: signed(person.Headers())},
		}, &mcp.ClientSessionOptions{ProtocolVersion: version}))
		call := func(tool string, arguments map[string]any) (any, error) {
			result, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: arguments})
			if err != nil {
				return nil, err
			}
			return result.StructuredContent, nil
		}
		return call, func() { session.Close() }
	})
}
