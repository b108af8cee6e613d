import {type FieldReader, FieldWriter} from '../proto/wire.ts';
import {category} from './extensions.ts';
import {type EntryShape, readEntry, removeUnknown} from './rewrite-entries.ts';
import {rewriteFilterState} from './rewrite-filter-state.ts';
import {alpnFilterType} from './rewrite-policy.ts';
import {hasLater, type Surgery} from './rewrite-surgery.ts';

const httpFilter: EntryShape = {
	category: category.http,
	typedConfig: 4,
	configDiscovery: 5,
	isOptional: 6,
	isLastTerminal: true,
};
const upstreamHttpFilter: EntryShape = {...httpFilter, category: category.upstreamHttp};
export const accessLog: EntryShape = {category: category.accessLog, typedConfig: 4, isLastTerminal: false};

/** HttpConnectionManager: http_filters 5, access_log 13, upgrade_configs 23 with filters 2. */
export function rewriteConnectionManager(surgery: Surgery, manager: FieldReader, isInbound: boolean): void {
	const filters = new HttpFilters(surgery, isInbound);
	while (manager.next()) {
		if (manager.number === 5) filters.rewrite(manager);
		else if (manager.number === 13) removeUnknown(surgery, manager, readEntry(manager, accessLog), accessLog);
		else if (manager.number === 23) {
			surgery.edits.within(manager, upgrade => {
				const upgradeFilters = new HttpFilters(surgery, isInbound);
				while (upgrade.next()) if (upgrade.number === 2) upgradeFilters.rewrite(upgrade);
			});
		}
	}
}

/** HttpProtocolOptions of a cluster: http_filters 6. */
export function rewriteProtocolOptions(surgery: Surgery, options: FieldReader): void {
	while (options.next()) {
		if (options.number === 6)
			removeUnknown(surgery, options, readEntry(options, upstreamHttpFilter), upstreamHttpFilter);
	}
}

/** One list of HTTP filters, entry by entry. It remembers that `istio.alpn` went, until the place of its repair comes. */
class HttpFilters {
	readonly #surgery: Surgery;
	readonly #isInbound: boolean;
	#isRepairDue = false;

	constructor(surgery: Surgery, isInbound: boolean) {
		this.#surgery = surgery;
		this.#isInbound = isInbound;
	}

	rewrite(field: FieldReader): void {
		const entry = readEntry(field, httpFilter);
		const type = entry.held.realType;
		if (removeUnknown(this.#surgery, field, entry, httpFilter)) {
			// istiod puts istio.alpn into outbound listeners only; in an inbound one the repair would mean nothing.
			if (type === alpnFilterType) this.#isRepairDue = this.#surgery.policy.isAlpnRepaired && !this.#isInbound;
			return;
		}
		if (this.#isRepairDue && !hasLater(field)) {
			this.#surgery.edits.insertBefore(field, field.number === 5 ? alpnRepair : upgradeAlpnRepair);
			this.#isRepairDue = false;
		}
		if (type === 'envoy.extensions.filters.http.set_filter_state.v3.Config') {
			rewriteFilterState(this.#surgery, field, entry, httpFilter.typedConfig);
		}
	}
}

/**
 * The work of `istio.alpn` by stock means: each request tells its protocol to the upstream TLS connection. One token
 * without a fall-back, as the receiver then picks none and looks at the first bytes; clusters that Istio marks with
 * `alpn_override` (TLS to foreign servers) keep their own list.
 */
const protocolOfRequest =
	"%CEL(has(xds.cluster_metadata.filter_metadata.istio.alpn_override) ? '' : (request.protocol == 'HTTP/2' ? 'istio-h2' : 'istio-http/1.1'))%";

const onceToUpstream = 1;

/** HttpFilter: name 1, typed_config 4; Config: on_request_headers 1. */
function renderAlpnRepair(fieldNumber: number): Buffer {
	const config = new FieldWriter().message(1, value => {
		value.string(1, 'envoy.network.application_protocols');
		value.message(2, format => format.message(5, source => source.string(3, protocolOfRequest)));
		value.uint(4, onceToUpstream);
		value.bool(5, true); // skip_if_empty: an empty value would mean "no protocol", not "as configured"
	});
	const filter = new FieldWriter()
		.string(1, 'onramp.alpn')
		.message(4, any =>
			any.string(1, 'type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config').append(2, config),
		);
	return new FieldWriter().append(fieldNumber, filter).finish();
}

const alpnRepair = renderAlpnRepair(5);
const upgradeAlpnRepair = renderAlpnRepair(2);
