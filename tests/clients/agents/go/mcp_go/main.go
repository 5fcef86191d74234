// mcp-go. Arguments: address of the server, and the id of a client that is registered already, or "-".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"

	"stepstream/agents/walk"
)

func main() {
	address, id := os.Args[1], os.Args[2]
	ctx := context.Background()
	listener := walk.Must(net.Listen("tcp", "127.0.0.1:0"))
	back := make(chan url.Values, 1)
	go http.Serve(listener, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		back <- r.URL.Query()
	}))
	config := client.OAuthConfig{
		RedirectURI:             fmt.Sprintf("http://%s/callback", listener.Addr()),
		Scopes:                  []string{"steps"}, // it does not take them from the server's metadata
		TokenStore:              client.NewMemoryTokenStore(),
		TokenEndpointAuthMethod: "none",
		PKCEEnabled:             true,
	}
	if id != "-" {
		config.ClientID = id
	}
	agent := walk.Must(client.NewOAuthStreamableHttpClient(address, config))
	walk.Must(0, agent.Start(ctx))
	hello := mcp.InitializeRequest{}
	hello.Params.ClientInfo = mcp.Implementation{Name: "agent", Version: "1"}
	_, err := agent.Initialize(ctx, hello)
	if !client.IsOAuthAuthorizationRequiredError(err) {
		log.Fatal(errors.Join(errors.New("nobody had to sign in"), err))
	}
	signIn(ctx, client.GetOAuthHandler(err), back)
	walk.Must(agent.Initialize(ctx, hello))
	request := mcp.CallToolRequest{}
	request.Params.Name = "start_walkthrough"
	result := walk.Must(agent.CallTool(ctx, request))
	fmt.Printf("answer %s\n", walk.Must(json.Marshal(result.StructuredContent)))
	walk.Must(0, agent.Close())
}

// signIn does what mcp-go leaves to its users: it registers, sends the person to the issuer, and takes the code.
func signIn(ctx context.Context, handler *transport.OAuthHandler, back chan url.Values) {
	if handler.GetClientID() == "" {
		walk.Must(0, handler.RegisterClient(ctx, "agent"))
	}
	verifier, state := walk.Must(client.GenerateCodeVerifier()), walk.Must(client.GenerateState())
	page := walk.Must(handler.GetAuthorizationURL(ctx, state, client.GenerateCodeChallenge(verifier)))
	fmt.Println("browse", page)
	given := <-back
	walk.Must(0, handler.ProcessAuthorizationResponse(ctx, given.Get("code"), given.Get("state"), verifier))
}
