//! Complete netlink dumps. The kernel sends a long list in parts, and marks a list that changed between two of them
//! (`NLM_F_DUMP_INTR`): entries may be missing then, and it is asked for again.

use futures::StreamExt;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{Error, Handle};

use super::{NetError, netlink::failed};

/// How often a list is asked for at most.
const TRIES: u32 = 20;

/// All that a request lists. The handle's connection must forward the ends of lists, which may be what tells of a change.
pub(super) async fn dump(
    handle: &Handle,
    what: &str,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, NetError> {
    undisturbed(what, async || attempt(handle.clone(), request.clone()).await.map_err(|error| failed(what, &error)))
        .await
}

/// The list; `None` if it changed meanwhile.
async fn attempt(mut handle: Handle, request: RouteNetlinkMessage) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut answers = handle.request(message)?;
    let (mut found, mut changed) = (Vec::new(), false);
    while let Some(answer) = answers.next().await {
        changed |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => found.push(message),
            NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
            _ => {}
        }
    }
    Ok((!changed).then_some(found))
}

async fn undisturbed<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T, NetError>
where
    F: Future<Output = Result<Option<T>, NetError>>,
{
    for _ in 0..TRIES {
        if let Some(found) = attempt().await? {
            return Ok(found);
        }
    }
    let reason = "the list changed each time while the kernel told it".to_owned();
    Err(NetError::Netlink { what: what.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a list that changes so often, and how often it was asked for.
    async fn after(changes: u32) -> (Result<(), NetError>, u32) {
        let mut asked = 0;
        let read = undisturbed("list the devices", || {
            asked += 1;
            std::future::ready(Ok((asked > changes).then_some(())))
        });
        (read.await, asked)
    }

    #[tokio::test]
    async fn a_list_that_changed_while_it_was_told_is_asked_for_again_but_not_for_ever() {
        assert!(matches!(after(0).await, (Ok(()), 1)));
        assert!(matches!(after(3).await, (Ok(()), 4)));
        let (read, asked) = after(u32::MAX).await;
        assert!(read.expect_err("it never held still").to_string().contains("list the devices"));
        assert_eq!(asked, TRIES);
    }

    #[tokio::test]
    async fn a_list_of_the_kernels_is_told_to_its_end() {
        let net = crate::net::Netlink::open().expect("a socket");
        let devices = net.devices().await.expect("a list");
        assert!(devices.iter().any(|device| device.name == "lo"));
        assert!(net.addresses().await.is_ok());
    }
}
