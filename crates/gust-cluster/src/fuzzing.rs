//! Ways to the inside for the fuzz targets (`fuzz/`); in their builds only.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    convert::{self, Images},
    message::{NodeRequest, Reply, Report, Request},
};

/// Makes of a request what its receiver does, as far as that needs nothing else.
pub fn understand_request(request: Request) {
    let Request::Node(request) = request else { return };
    match request {
        NodeRequest::Deploy(version) | NodeRequest::Register(version) => {
            let images = Images {
                root: "root".into(),
                code: "code".into(),
                layers: Vec::new(),
            };
            if let Ok(spec) = convert::spec(&version, images) {
                let files = (
                    version.root_image,
                    version.code_image,
                    version.layer_images.clone(),
                );
                let again = convert::version(&spec, files.0, files.1, files.2);
                assert_eq!(again.egress.is_empty(), version.egress.is_empty());
                assert_eq!((again.id, again.handler), (version.id, version.handler));
            }
        }
        NodeRequest::Invoke(call) => {
            let (output, _pieces) = mpsc::channel(1);
            let (version, invocation) = convert::invocation(call.clone(), Bytes::new(), output, None);
            let mut again = convert::call(&version, &invocation);
            again.wants_delivery = call.wants_delivery;
            assert_eq!(again, call);
        }
        NodeRequest::Create { named, .. } => {
            assert_eq!(convert::named(convert::from_named(named)), named);
        }
        NodeRequest::Remove(_)
        | NodeRequest::Retain
        | NodeRequest::Prepare(_)
        | NodeRequest::Evict { .. }
        | NodeRequest::Stats
        | NodeRequest::Export(_)
        | NodeRequest::End(_)
        | NodeRequest::EndArmed { .. }
        | NodeRequest::Revoked => {}
    }
}

/// The same of a reply with its body.
pub fn understand_reply(reply: Reply, body: Bytes) {
    match reply {
        Reply::Deployed(deployed) => {
            let read = convert::from_deployed(&deployed, body);
            assert_eq!(convert::deployed(&read), deployed);
        }
        Reply::NotDeployed(failure) => {
            let _ = convert::not_deployed(convert::from_not_deployed(failure, body));
        }
        Reply::Outcome(outcome) => {
            let (again, _) = convert::outcome(convert::from_outcome(outcome.clone(), body));
            assert_eq!(again, outcome);
        }
        Reply::NotRun(not_run) => {
            let _ = convert::not_run(convert::from_not_run(not_run, body));
        }
        Reply::Stats(stats) => assert_eq!(convert::stats(convert::from_stats(stats)), stats),
        Reply::Done
        | Reply::Unknown
        | Reply::Busy
        | Reply::Failed(_)
        | Reply::Joined(_)
        | Reply::Renewed { .. }
        | Reply::Sources(_)
        | Reply::Snapshot(..)
        | Reply::Missing
        | Reply::Content => {}
    }
}

/// The same of what a node says that it has.
pub fn understand_report(report: Report) {
    for present in report.instances {
        assert_eq!(convert::present(convert::from_present(present.clone())), present);
    }
}
