//! rmcp. Argument: `newest` or `sessions`. Lines of stdin and stdout, and the habits, are as in python/walk.py.

use std::{env, error::Error, io};

use rmcp::{
    ClientLifecycleMode, ClientServiceExt, RoleClient,
    model::{CallToolRequestParams, ProtocolVersion},
    service::RunningService,
    transport::{
        StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DONE: [&str; 4] = ["advanced", "finished", "repeated", "already-finished"];

/// Whom the program leads, and how.
struct Person {
    url: String,
    token: String,
    habit: String,
    most: usize,
}

impl Person {
    fn read(line: &str) -> Result<Self> {
        let fields: Vec<String> = line.split_whitespace().map(Into::into).collect();
        let [url, token, habit, most] = fields.try_into().map_err(|_| "not four fields")?;
        Ok(Self {
            url,
            token,
            habit,
            most: most.parse()?,
        })
    }

    async fn connect(&self) -> Result<RunningService<RoleClient, ()>> {
        let mut config = StreamableHttpClientTransportConfig::with_uri(self.url.as_str());
        if self.token != "-" {
            config = config.auth_header(self.token.as_str());
        }
        let lifecycle = match env::args().nth(1).as_deref() {
            Some("newest") => ClientLifecycleMode::Discover {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            },
            Some("sessions") => ClientLifecycleMode::Initialize,
            _ => return Err("no mode".into()),
        };
        let transport = StreamableHttpClientTransport::from_config(config);
        Ok(().serve_with_lifecycle(transport, lifecycle).await?)
    }

    async fn lead(&self) -> Result<Value> {
        let mut agent = None;
        let mut answer = self
            .call(&mut agent, "start_walkthrough", Map::new())
            .await?;
        let mut steps: Vec<Value> = Vec::new();
        while !answer["step"].is_null() && steps.len() < self.most {
            let step = answer["step"]["id"].clone();
            let mut arguments = Map::new();
            if self.habit != "unnamed" {
                arguments.insert("current_step_id".into(), step.clone());
            }
            if !answer["visitor"].is_null() && self.habit != "forgets" {
                arguments.insert("visitor".into(), answer["visitor"].clone());
            }
            if self.habit == "repeats" {
                self.call(&mut agent, "get_next_step", arguments.clone())
                    .await?;
            }
            let first = self
                .call(&mut agent, "get_next_step", arguments.clone())
                .await;
            answer = match first {
                Err(_) if self.habit == "loses" => {
                    self.call(&mut agent, "get_next_step", arguments).await?
                }
                answered => answered?,
            };
            if DONE.iter().any(|outcome| answer["outcome"] == *outcome) {
                steps.push(step);
            }
        }
        if let Some(open) = agent {
            open.cancel().await?;
        }
        Ok(json!({"steps": steps, "last": answer["outcome"]}))
    }

    async fn call(
        &self,
        agent: &mut Option<RunningService<RoleClient, ()>>,
        tool: &'static str,
        arguments: Map<String, Value>,
    ) -> Result<Value> {
        let open = match agent.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        let params = CallToolRequestParams::new(tool).with_arguments(arguments);
        let result = open.call_tool(params).await?;
        if ["anew", "loses"].contains(&self.habit.as_str()) {
            open.cancel().await?;
        } else {
            *agent = Some(open);
        }
        Ok(result.structured_content.ok_or("no structured content")?)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    for line in io::stdin().lines() {
        println!("{}", Person::read(&line?)?.lead().await?);
    }
    Ok(())
}
