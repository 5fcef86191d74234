// The Go SDK. Arguments: address of the server, and the id of a client that is registered already, or "-".
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	url, id := os.Args[1], os.Args[2]
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	redirect := fmt.Sprintf("http://%s/callback", listener.Addr())
	back := make(chan *auth.AuthorizationResult, 1)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		back <- &auth.AuthorizationResult{
			Code: query.Get("code"), State: query.Get("state"), Iss: query.Get("iss"),
		}
	}))
	config := &auth.AuthorizationCodeHandlerConfig{
		RedirectURL: redirect,
		AuthorizationCodeFetcher: func(
			_ context.Context, args *auth.AuthorizationArgs,
		) (*auth.AuthorizationResult, error) {
			fmt.Println("browse", args.URL)
			return <-back, nil
		},
	}
	if id == "-" {
		config.DynamicClientRegistrationConfig = &auth.DynamicClientRegistrationConfig{
			Metadata: &oauthex.ClientRegistrationMetadata{
				ClientName: "agent", RedirectURIs: []string{redirect}, TokenEndpointAuthMethod: "none",
			},
		}
	} else {
		config.PreregisteredClient = &oauthex.ClientCredentials{ClientID: id}
	}
	transport := &mcp.StreamableClientTransport{
		Endpoint:     url,
		OAuthHandler: must(auth.NewAuthorizationCodeHandler(config)),
	}
	client := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil)
	session := must(client.Connect(context.Background(), transport, nil))
	result := must(session.CallTool(context.Background(), &mcp.CallToolParams{
		Name: "start_walkthrough", Arguments: map[string]any{},
	}))
	fmt.Printf("answer %s\n", must(json.Marshal(result.StructuredContent)))
	must(0, session.Close())
}
