import {connect} from 'node:net';
import type {CaptureConfig, Endpoint} from '../config/index.ts';
import type {HostFacts} from './context.ts';
import {evaluate, type Packet} from './evaluate.ts';
import {answersDns, answersTcp} from './listeners.ts';
import type {Run} from './programs.ts';
import {describeRule} from './render-text.ts';
import type {Plan} from './rules.ts';

/** One thing that worked before a change of rules must work after it. Plain data, so that it can be handed on. */
export interface Probe {
	readonly name: string;
	readonly check:
		| {readonly kind: 'route'; readonly family: '-4' | '-6'}
		| {readonly kind: 'dns'; readonly server: string; readonly question: string}
		| {readonly kind: 'tcp'; readonly host: string; readonly port: number}
		/** Nothing can be sent from outside, so this asks the rules; it holds as long as they leave the port alone. */
		| {readonly kind: 'inbound'; readonly port: number};
	/** As the rules see it, to name the one that decides. */
	readonly packet: Packet | undefined;
}

export interface ProbeContext {
	readonly nameservers: readonly string[];
	readonly sshPorts: readonly number[];
	readonly controlPlane: readonly Endpoint[];
	/** An address of this machine. */
	readonly address: string;
	/** Whose connections are tried. */
	readonly uid: number;
}

/** No setting exempts it. */
const nobody = 65_534;

/** For this process: a user whom the rules exempt tries in the name of one whom they do not. */
export function probesFor(
	config: CaptureConfig,
	workload: Pick<ProbeContext, 'controlPlane' | 'address'>,
): (host: HostFacts) => readonly Probe[] {
	const own = process.getuid?.() ?? 0;
	return ({users, nameservers, sshPorts}) => {
		const isExempt = config.users.some(name => users[name]?.uid === own);
		return listProbes(config, {...workload, nameservers, sshPorts, uid: isExempt ? nobody : own});
	};
}

const withinMs = 1000;

/** What a locked-out administrator, or the agent, would miss first. */
export function listProbes({probes}: CaptureConfig, context: ProbeContext): readonly Probe[] {
	const out = (protocol: 'tcp' | 'udp', destination: string, port: number): Packet | undefined =>
		/[a-z]/i.test(destination) && !destination.includes(':')
			? undefined
			: {direction: 'out', protocol, destination, port, interface: 'eth0', uid: context.uid};
	const tcp = (name: string, host: string, port: number): Probe => ({
		name,
		check: {kind: 'tcp', host, port},
		packet: out('tcp', host, port),
	});
	return [
		{name: 'default route (IPv4)', check: {kind: 'route', family: '-4'}, packet: undefined},
		{name: 'default route (IPv6)', check: {kind: 'route', family: '-6'}, packet: undefined},
		...context.nameservers.map(
			(server): Probe => ({
				name: `resolver ${server} answers`,
				check: {kind: 'dns', server, question: ''},
				packet: out('udp', server, 53),
			}),
		),
		...context.sshPorts.map(
			(port): Probe => ({
				name: `SSH on port ${port} is reached from outside`,
				check: {kind: 'inbound', port},
				packet: {direction: 'in', protocol: 'tcp', destination: context.address, port, interface: 'eth0'},
			}),
		),
		tcp('the metadata server answers', '169.254.169.254', 80),
		// Asked by the agent itself, which is exempt.
		...context.controlPlane.map(({host, port}) => ({
			...tcp(`control plane ${host}:${port} answers`, host, port),
			...(context.uid === nobody ? {packet: undefined} : {}),
		})),
		...probes.map((probe): Probe => {
			const [, host, port] = /^tcp:\/\/(.+):(\d+)$/.exec(probe) ?? [];
			if (host !== undefined) return tcp(`${probe} answers`, host.replace(/^\[|\]$/g, ''), Number(port));
			const [server = ''] = context.nameservers;
			return {
				name: `${probe} is answered`,
				check: {kind: 'dns', server, question: probe.slice('dns:'.length)},
				packet: out('udp', server, 53),
			};
		}),
	];
}

/**
 * Rules do not lead an exempt user anywhere; so where they would lead the one in whose name it asks, it goes by itself.
 * @param plan - the rules in force, or undefined before there are any
 */
export async function runProbe(
	{check}: Probe,
	plan: Plan | undefined,
	run: Run,
	packet: Packet | undefined,
): Promise<boolean> {
	const led = plan && packet && packet.uid !== process.getuid?.() ? evaluate(plan, packet) : undefined;
	if (led?.fate === 'refused' && check.kind !== 'inbound') return false;
	const verdict = led?.rule?.verdict;
	const own = packet?.destination.includes(':') ? '::1' : '127.0.0.1';
	switch (check.kind) {
		case 'route': {
			const {stdout} = await run('ip', [check.family, '-j', 'route', 'show', 'default']);
			return stdout.includes('"dst"');
		}
		case 'dns':
			if (verdict?.kind === 'redirect') return answersDns(own, verdict.port, check.question, withinMs);
			return check.server !== '' && answersDns(check.server, 53, check.question, withinMs);
		case 'tcp':
			if (verdict?.kind === 'redirect') return answersTcp(own, verdict.port, withinMs);
			return staysOpen(check.host, check.port);
		case 'inbound':
			return plan === undefined || packet === undefined || evaluate(plan, packet).fate === 'untouched';
	}
}

/** How long Envoy may need to find that there is nobody behind it. */
const quietMs = 250;

/** Envoy takes every connection that is led to it, and ends it when the destination does not answer. */
function staysOpen(host: string, port: number): Promise<boolean> {
	return new Promise(resolve => {
		const socket = connect({host, port});
		let timer: NodeJS.Timeout | undefined;
		const end = (isOpen: boolean) => {
			clearTimeout(timer);
			socket.destroy();
			resolve(isOpen);
		};
		socket.setTimeout(withinMs, () => end(false));
		socket.once('connect', () => {
			timer = setTimeout(() => end(true), quietMs);
		});
		socket.once('data', () => end(true));
		socket.once('end', () => end(false));
		socket.once('error', () => end(false));
	});
}

/** The rule that decides over what a probe sends, in words. */
export function responsibleRule(plan: Plan, {packet}: Probe): string | undefined {
	if (packet === undefined) return undefined;
	const {rule} = evaluate(plan, packet);
	return rule && describeRule(rule);
}
