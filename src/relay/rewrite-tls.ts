import type {FieldReader} from '../proto/wire.ts';
import {noteRemoval, peerExchange, readAny, type Surgery, withinAny} from './rewrite-surgery.ts';

const tls = 'envoy.extensions.transport_sockets.tls.v3.';
const contexts: ReadonlySet<string> = new Set([`${tls}DownstreamTlsContext`, `${tls}UpstreamTlsContext`]);

/** Sockets around another one, which is their field 2. */
const wrappers: ReadonlySet<string> = new Set([
	'envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport',
	'envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport',
]);

/** TransportSocket: typed_config 3. TLS contexts: common_tls_context 1 with alpn_protocols 4. */
export function rewriteTransportSocket(surgery: Surgery, field: FieldReader, mayBeWrapped = true): void {
	surgery.edits.within(field, socket => {
		while (socket.next()) {
			if (socket.number !== 3) continue;
			const {type} = readAny(socket);
			if (contexts.has(type)) withinAny(surgery, socket, context => rewriteContext(surgery, context));
			else if (mayBeWrapped && wrappers.has(type)) {
				withinAny(surgery, socket, wrapper => {
					while (wrapper.next()) if (wrapper.number === 2) rewriteTransportSocket(surgery, wrapper, false);
				});
			}
		}
	});
}

function rewriteContext(surgery: Surgery, context: FieldReader): void {
	while (context.next()) {
		if (context.number !== 1) continue;
		surgery.edits.within(context, common => {
			while (common.next()) {
				if (common.number !== 4 || !isPeerExchange(common)) continue;
				surgery.edits.remove(common);
				noteRemoval(surgery, 'alpn', peerExchange, '', 'workload metadata of peers over plain TCP');
			}
		});
	}
}

function isPeerExchange(field: FieldReader): boolean {
	return field.end - field.valueStart === peerExchange.length && field.string() === peerExchange;
}
