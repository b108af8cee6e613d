import type {Chain, Family, Match, Rule, Verdict} from './rules.ts';

/** Source of Envoy's and the agent's connections to the application; rules must let it pass. */
export const passThrough: Readonly<Record<Family, string>> = {ip: '127.0.0.6/32', ip6: '::6/128'};

export const loopbackOf: Readonly<Record<Family, string>> = {ip: '127.0.0.1/32', ip6: '::1/128'};

export const familyOf = (address: string): Family => (address.includes(':') ? 'ip6' : 'ip');

export type Add = (chain: Chain, id: string, match: Match, verdict: Verdict, reason: string) => void;

/** Collects the rules of one family, in order. */
export function collect(family: Family, rules: Rule[]): Add {
	return (chain, id, match, verdict, reason) => {
		rules.push({family, chain, id, match, verdict, reason});
	};
}

export const returns: Verdict = {kind: 'return'};

/** iptables takes 15 ports in one rule. */
export function portGroups(ports: readonly number[]): readonly (readonly number[])[] {
	const sorted = [...new Set(ports)].sort((a, b) => a - b);
	return Array.from({length: Math.ceil(sorted.length / 15)}, (_, i) => sorted.slice(i * 15, i * 15 + 15));
}
