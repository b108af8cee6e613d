import {FieldReader} from '../proto/wire.ts';
import {category} from './extensions.ts';
import {type EntryShape, readEntry, removeUnknown} from './rewrite-entries.ts';
import {rewriteFilterState} from './rewrite-filter-state.ts';
import {accessLog, rewriteConnectionManager} from './rewrite-http.ts';
import {type Surgery, withinAny} from './rewrite-surgery.ts';
import {rewriteTransportSocket} from './rewrite-tls.ts';

const networkFilter: EntryShape = {
	category: category.network,
	typedConfig: 4,
	configDiscovery: 5,
	isLastTerminal: true,
};
const listenerFilter: EntryShape = {
	category: category.listener,
	typedConfig: 3,
	configDiscovery: 5,
	isLastTerminal: false,
};

/** Listener: filter_chains 3, listener_filters 9, access_log 22, default_filter_chain 25. */
export function rewriteListener(surgery: Surgery, listener: FieldReader): void {
	const isInbound = isInboundListener(new FieldReader(listener.buffer, listener.start, listener.messageEnd));
	while (listener.next()) {
		switch (listener.number) {
			case 3:
			case 25:
				surgery.edits.within(listener, chain => rewriteFilterChain(surgery, chain, isInbound));
				break;
			case 9:
				removeUnknown(surgery, listener, readEntry(listener, listenerFilter), listenerFilter);
				break;
			case 22:
				removeUnknown(surgery, listener, readEntry(listener, accessLog), accessLog);
				break;
		}
	}
}

const inboundDirection = 1;

/** By name or traffic_direction 16. They may stand after the chains they decide about, so they are looked up first. */
function isInboundListener(listener: FieldReader): boolean {
	while (listener.next()) {
		if (listener.number === 1 && listener.string() === 'virtualInbound') return true;
		if (listener.number === 16 && listener.int32() === inboundDirection) return true;
	}
	return false;
}

/** FilterChain: filters 3, transport_socket 6. */
function rewriteFilterChain(surgery: Surgery, chain: FieldReader, isInbound: boolean): void {
	const isOfferCut = surgery.policy.isPeerExchangeRemovedInbound && surgery.hasPeerExchange;
	while (chain.next()) {
		if (chain.number === 3) rewriteNetworkFilter(surgery, chain, isInbound);
		else if (chain.number === 6 && isOfferCut) rewriteTransportSocket(surgery, chain);
	}
}

function rewriteNetworkFilter(surgery: Surgery, field: FieldReader, isInbound: boolean): void {
	const entry = readEntry(field, networkFilter);
	if (removeUnknown(surgery, field, entry, networkFilter)) return;
	switch (entry.held.type) {
		case 'envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager':
			surgery.edits.within(field, filter => {
				while (filter.next()) {
					if (filter.number !== networkFilter.typedConfig) continue;
					withinAny(surgery, filter, manager => rewriteConnectionManager(surgery, manager, isInbound));
				}
			});
			break;
		case 'envoy.extensions.filters.network.set_filter_state.v3.Config':
			rewriteFilterState(surgery, field, entry, networkFilter.typedConfig);
			break;
	}
}
