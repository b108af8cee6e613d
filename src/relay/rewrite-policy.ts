import {createHash} from 'node:crypto';
import {type Category, category, type KnownExtensions} from './extensions.ts';

/** What only Istio's Envoy build has, what istiod sends of it by default, and what is lost without it. */
interface IstioOnly {
	readonly category: Category;
	readonly type: string;
	readonly lost: string;
}

export const alpnFilterType = 'istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig';
export const metadataExchangeType = 'envoy.tcp.metadataexchange.config.MetadataExchange';
const peerMetadataType = 'io.istio.http.peer_metadata.Config';
const statsType = 'stats.PluginConfig';
const setFilterStateType = 'envoy.extensions.filters.http.set_filter_state.v3.Config';

const lostPeerNames = 'names and labels of the peer workload, here and in the telemetry of the peers';

/** Each row was seen on the wire from an istiod in default settings. */
const istioOnly: readonly IstioOnly[] = [
	{category: category.upstreamNetwork, type: metadataExchangeType, lost: lostPeerNames},
	{category: category.network, type: metadataExchangeType, lost: lostPeerNames},
	{category: category.http, type: peerMetadataType, lost: lostPeerNames},
	{category: category.network, type: statsType, lost: 'istio_tcp_* metrics of this workload'},
	{
		category: category.http,
		type: statsType,
		lost: 'istio_requests_total and the other istio_* HTTP metrics of this workload',
	},
	{
		category: category.http,
		type: alpnFilterType,
		lost: 'requests to auto-detected ports arrive as TCP, so HTTP rules there deny them',
	},
];

/** Packages that are built into Istio's Envoy and no other. */
const istioPackages = ['istio.', 'io.istio.', 'stats.PluginConfig', 'envoy.tcp.metadataexchange.'];

/**
 * A filter that guards or routes must not vanish without a sound: `authn`, `authz`, `connect_authority`, `jwt`. With
 * it left in, Envoy refuses the listener and the refusal is seen; without it, traffic would pass unguarded.
 */
const guards = /auth|jwt|rbac|secur|policy|limit|tls/i;

export interface Policy {
	/** What is lost when an entry of this type is taken out, or undefined when it stays. */
	lostWithout(category: Category, type: string, isOptional: boolean): string | undefined;
	/** Replace `istio.alpn` by a stock filter that does the same. */
	readonly isAlpnRepaired: boolean;
	/** Take `istio-peer-exchange` from what is offered to clients; from what is offered to servers. */
	readonly isPeerExchangeRemovedInbound: boolean;
	readonly isPeerExchangeRemovedOutbound: boolean;
	/** Rename the object factory `istio.hashable_string` to Envoy's own. */
	readonly isHashableStringRenamed: boolean;
	/** Stands for all of the above; '' when nothing is ever rewritten. */
	readonly profile: string;
}

/**
 * What to take out for this Envoy. Only what is Istio's alone, or marked optional by its author, ever goes; anything
 * else it does not know stays in, so that Envoy refuses it where people can see it.
 * @param known - undefined: Envoy did not say, and the rows above are taken to be unknown to it
 */
export function createPolicy(known: KnownExtensions | undefined): Policy {
	const isUnknown = ({category, type}: {category: Category; type: string}) => !known?.hasType(category, type);
	const repaired =
		known === undefined ||
		(known.hasType(category.http, setFilterStateType) &&
			known.hasName(category.filterState, 'envoy.network.application_protocols'));
	const unknownRows = istioOnly.filter(isUnknown);
	const lostByType = new Map<Category, Map<string, string>>(Object.values(category).map(name => [name, new Map()]));
	for (const row of unknownRows) lostByType.get(row.category)!.set(row.type, row.lost);
	const httpRows = lostByType.get(category.http)!;
	const isAlpnRepaired = repaired && httpRows.has(alpnFilterType);
	if (isAlpnRepaired) httpRows.set(alpnFilterType, 'nothing: a stock filter sets the protocol instead');

	const lookUp = (category: Category, type: string, isOptional: boolean): string | undefined => {
		const lost = lostByType.get(category)!.get(type);
		if (lost !== undefined || known === undefined) return lost;
		if (known.hasType(category, type)) return undefined;
		if (isOptional) return 'what this optional filter does';
		const isIstioOnly = istioPackages.some(name => type.startsWith(name)) && !guards.test(type);
		return isIstioOnly ? "what this extension of Istio's Envoy build does" : undefined;
	};
	return {
		lostWithout: (category, type, isOptional) => (type === '' ? undefined : lookUp(category, type, isOptional)),
		isAlpnRepaired,
		isPeerExchangeRemovedInbound: isUnknown({category: category.network, type: metadataExchangeType}),
		isPeerExchangeRemovedOutbound: isUnknown({category: category.upstreamNetwork, type: metadataExchangeType}),
		isHashableStringRenamed:
			known !== undefined &&
			!known.hasName(category.filterState, 'istio.hashable_string') &&
			known.hasName(category.filterState, 'envoy.hashable_string'),
		// An Envoy that has all rows is Istio's own: nothing istiod sends is foreign to it.
		profile: unknownRows.length === 0 ? '' : profileOf(known),
	};
}

/** Rises when the same list would be treated differently, so that saved results are not mixed with new ones. */
const rulesVersion = 1;

function profileOf(known: KnownExtensions | undefined): string {
	return createHash('sha256')
		.update(`${rulesVersion} ${known?.fingerprint ?? 'unsaid'}`)
		.digest('hex')
		.slice(0, 12);
}
