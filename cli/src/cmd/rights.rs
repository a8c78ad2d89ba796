//! `muster rights`: what each role may do on NATS, as settings of a nats-server or as JSON. Asks
//! nobody.

use std::collections::BTreeMap;

use muster_platform::config::Config;
use muster_protocol::ids::{InvalidId, WorkerId};
use muster_protocol::names::Names;
use muster_protocol::rights::{self, Rights, Role};

use crate::args::{RightsArgs, RightsFormat, RightsRole};
use crate::exit::Exit;
use crate::output;

/// Prints the rights of one role, or of all.
pub(crate) fn run(args: &RightsArgs) -> Result<(), Exit> {
    // As settings they are validated.
    let config = Config::layered(&[&format!("namespace = {:?}", args.namespace)]);
    let names = Names::new(&config.map_err(|e| Exit::usage(e.message))?.namespace);
    let id = args
        .id
        .as_deref()
        .map(|id| id.parse().map_err(|e: InvalidId| Exit::usage(e.to_string())))
        .transpose()?;
    if id.is_some() && args.role != Some(RightsRole::Worker) {
        return Err(Exit::usage("--id is for --role worker"));
    }
    let role = args.role.map(|role| role_of(role, id));
    match (args.format, role) {
        (RightsFormat::Nats, Some(role)) => {
            output::text(&role.rights(&names).to_settings("permissions"));
        }
        (RightsFormat::Nats, None) => output::text(&rights::all_settings(&args.namespace)),
        (RightsFormat::Json, Some(role)) => output::json(&role.rights(&names)),
        (RightsFormat::Json, None) => {
            let roles = [Role::Coordinator, Role::Workers, Role::Client, Role::Operator];
            let all: BTreeMap<&str, Rights> =
                roles.iter().map(|role| (role.as_str(), role.rights(&names))).collect();
            output::json(&all);
        }
    }
    Ok(())
}

fn role_of(role: RightsRole, id: Option<WorkerId>) -> Role {
    match (role, id) {
        (RightsRole::Coordinator, _) => Role::Coordinator,
        (RightsRole::Worker, None) => Role::Workers,
        (RightsRole::Worker, Some(id)) => Role::Worker(id),
        (RightsRole::Client, _) => Role::Client,
        (RightsRole::Operator, _) => Role::Operator,
    }
}
