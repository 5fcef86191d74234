//! rmcp. Arguments: address of the server, and the id of a client that is registered already, or "-".

use std::{env, error::Error};

use rmcp::{
    ServiceExt,
    model::CallToolRequestParams,
    transport::{
        StreamableHttpClientTransport,
        auth::{AuthorizationRequest, OAuthState},
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let [_, url, id]: [String; 3] = env::args()
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| "an address and the id of a client")?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);

    let mut request = AuthorizationRequest::new(format!("{origin}/callback"))
        .with_client_name("agent")
        .with_initial_scope_selection();
    if id != "-" {
        request = request.with_preregistered_client(id);
    }
    let mut sign_in = OAuthState::new(url.as_str(), None).await?;
    sign_in.start_authorization(request).await?;
    println!("browse {}", sign_in.get_authorization_url().await?);
    sign_in
        .handle_callback_url(&format!("{origin}{}", came_back(listener).await?))
        .await?;

    let signed_in = sign_in
        .into_authorization_manager()
        .ok_or("not signed in")?;
    let token = signed_in.get_access_token().await?;
    let config = StreamableHttpClientTransportConfig::with_uri(url).auth_header(token);
    let agent = ().serve(StreamableHttpClientTransport::from_config(config)).await?;
    let result = agent
        .call_tool(CallToolRequestParams::new("start_walkthrough"))
        .await?;
    println!(
        "answer {}",
        result.structured_content.ok_or("no structured content")?
    );
    agent.cancel().await?;
    Ok(())
}

/// The path at which the issuer sent the person back.
async fn came_back(listener: TcpListener) -> Result<String> {
    let (mut stream, _) = listener.accept().await?;
    let (reader, mut writer) = stream.split();
    let mut first = String::new();
    BufReader::new(reader).read_line(&mut first).await?;
    writer
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .await?;
    Ok(first.split_whitespace().nth(1).ok_or("no path")?.into())
}
