import type {FieldReader} from '../proto/wire.ts';
import {category} from './extensions.ts';
import {type EntryShape, readEntry, removeUnknown} from './rewrite-entries.ts';
import {rewriteProtocolOptions} from './rewrite-http.ts';
import {readAny, type Surgery, withinAny} from './rewrite-surgery.ts';
import {rewriteTransportSocket} from './rewrite-tls.ts';

const clusterFilter: EntryShape = {
	category: category.upstreamNetwork,
	typedConfig: 2,
	configDiscovery: 3,
	isLastTerminal: false,
};

/** Cluster: transport_socket 24, typed_extension_protocol_options 36, filters 40, transport_socket_matches 43. */
export function rewriteCluster(surgery: Surgery, cluster: FieldReader): void {
	const {policy, edits} = surgery;
	const isOfferCut = policy.isPeerExchangeRemovedOutbound && surgery.hasPeerExchange;
	while (cluster.next()) {
		switch (cluster.number) {
			case 24:
				if (isOfferCut) rewriteTransportSocket(surgery, cluster);
				break;
			case 36:
				rewriteExtensionOptions(surgery, cluster);
				break;
			case 40:
				removeUnknown(surgery, cluster, readEntry(cluster, clusterFilter), clusterFilter);
				break;
			case 43:
				if (!isOfferCut) break;
				edits.within(cluster, match => {
					while (match.next()) if (match.number === 3) rewriteTransportSocket(surgery, match);
				});
				break;
		}
	}
}

/** A map entry: key 1, value 2 (Any). */
function rewriteExtensionOptions(surgery: Surgery, field: FieldReader): void {
	surgery.edits.within(field, entry => {
		while (entry.next()) {
			if (entry.number !== 2 || readAny(entry).type !== 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions')
				continue;
			withinAny(surgery, entry, options => rewriteProtocolOptions(surgery, options));
		}
	});
}
