import {execFile} from 'node:child_process';
import {promisify} from 'node:util';
import {AgentError, reasonOf, systemCode} from '../errors.ts';
import type {Clock, Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';

/** Runs a program and returns what it says. @throws Error with its standard error */
export type Run = (file: string, args: readonly string[]) => Promise<string>;

export interface ResolvedDeps {
	/** Ours alone: its settings are overwritten. */
	readonly link: string;
	/** Where we listen, `127.0.0.1:15053`. */
	readonly server: string;
	readonly clock: Clock;
	readonly log: Logger;
	readonly run?: Run | undefined;
	readonly onChange: () => void;
}

export interface Resolved extends Running {
	/** Domains to be asked of us, without a dot at the end. */
	setDomains(domains: readonly string[]): void;
	/** Undefined while systemd-resolved asks us for these domains. */
	readonly problem: AgentError | undefined;
	readonly domains: readonly string[];
	/** Those that systemd-resolved has no room for. */
	readonly left: number;
}

/** As systemd-resolved takes for one link, in its versions before 244; those of the mesh come first. */
export const mostDomains = 256;
/** Somebody may take the link away, or `resolvectl revert` it. */
const verifyMs = 30_000;
const retryMs = 3000;
const programMs = 5000;

/**
 * Lets systemd-resolved ask us for the domains of the mesh: as routing domains of a link of ours, with us as that link's
 * only server. All other names stay with the servers that it has. Nothing is written to resolv.conf; systemd-resolved
 * forgets it all with the link. It takes a polkit rule, or root; making the link takes CAP_NET_ADMIN, and is not done here.
 */
export function startResolved({link, server, clock, log, run = runProgram, onChange}: ResolvedDeps): Resolved {
	const stopping = new AbortController();
	let wanted: readonly string[] = [];
	let left = 0;
	let applied: string | undefined;
	let problem: AgentError | undefined = new AgentError(
		'dns.resolved_refused',
		'systemd-resolved has not been told yet',
	);
	let wake = () => {};

	const apply = async () => {
		const domains = wanted;
		const routes = domains.map(domain => `~${domain}`);
		const now = routes.join(' ');
		if (applied === now && (await holds(run, link, server, routes))) return;
		applied = undefined;
		// A server first: a link without one is not asked, and one without domains would be asked for everything.
		await run('resolvectl', ['default-route', link, 'no']);
		await run('resolvectl', ['dns', link, server]);
		// The mesh signs nothing, and nobody else is on the way to us.
		await run('resolvectl', ['dnssec', link, 'no']);
		await run('resolvectl', ['dnsovertls', link, 'no']);
		await run('resolvectl', ['domain', link, ...(routes.length > 0 ? routes : [''])]);
		applied = now;
		log.info({link, server, domains: domains.length}, 'systemd-resolved asks the agent for names of the mesh');
	};

	const work = async () => {
		for (;;) {
			const before = problem?.message;
			try {
				await apply();
				problem = undefined;
			} catch (error) {
				problem = explain(error, link);
				if (before !== problem.message) log.warn({err: problem}, 'systemd-resolved does not ask the agent');
			}
			if (before !== problem?.message) onChange();
			if (wanted.map(domain => `~${domain}`).join(' ') === applied || problem) {
				const woken = new Promise<void>(resolve => {
					wake = resolve;
				});
				await Promise.race([woken, clock.sleep(problem ? retryMs : verifyMs, stopping.signal)]);
			}
			stopping.signal.throwIfAborted();
		}
	};
	const finished = work().catch((error: unknown) => {
		if (!stopping.signal.aborted) throw error;
	});

	return {
		finished,
		setDomains: domains => {
			const unique = [...new Set(domains)];
			wanted = unique.slice(0, mostDomains);
			left = unique.length - wanted.length;
			wake();
		},
		get problem() {
			return problem;
		},
		get domains() {
			return wanted;
		},
		get left() {
			return left;
		},
		stop: async () => {
			stopping.abort();
			wake();
			await finished;
			if (applied === undefined) return;
			// Names of the mesh then fail like any other unknown name, and not by waiting for us.
			await run('resolvectl', ['revert', link]).catch((err: unknown) => {
				log.warn({err, link}, 'systemd-resolved keeps asking a stopped agent');
			});
		},
	};
}

async function holds(run: Run, link: string, server: string, routes: readonly string[]): Promise<boolean> {
	const words = (text: string) => new Set(text.split(/\s+/));
	const [domains, servers] = await Promise.all([run('resolvectl', ['domain', link]), run('resolvectl', ['dns', link])]);
	const known = words(domains);
	return words(servers).has(server) && routes.every(route => known.has(route));
}

/** @returns what stands in the way, and how it is put right */
function explain(error: unknown, link: string): AgentError {
	const reason = reasonOf(error);
	const fail = (why: string, hint: string) =>
		new AgentError('dns.resolved_refused', `give domains to systemd-resolved: ${why}`, {cause: error, hint});
	if (systemCode(error) === 'ENOENT')
		return fail('resolvectl is not installed', 'apt install systemd-resolved, or set dns.mode to capture');
	if (/No such device|does not exist|Failed to resolve interface/i.test(reason))
		return fail(
			`there is no link ${link}`,
			`systemctl enable --now onramp-dns-link; without the package, as root: ip link add ${link} type dummy && ip address add 127.0.15.53/32 scope global dev ${link} && ip link set ${link} up`,
		);
	if (/auth|denied|permission|not permitted/i.test(reason))
		return fail(
			'not permitted',
			'as root: cp /usr/share/onramp/50-onramp-dns.rules /etc/polkit-1/rules.d/ (Ubuntu 22.04: 50-onramp-dns.pkla to /etc/polkit-1/localauthority/50-local.d/); without the package, see docs/dns.md',
		);
	if (/unit.*not found|could not activate|connect to bus|not provided|Connection refused/i.test(reason))
		return fail('it does not run', 'systemctl enable --now systemd-resolved, or set dns.mode to capture');
	return fail(reason, 'try it by hand: resolvectl status');
}

const runProgram: Run = async (file, args) => {
	try {
		const {stdout} = await promisify(execFile)(file, args, {timeout: programMs, killSignal: 'SIGKILL'});
		return stdout;
	} catch (error) {
		const {stderr = '', code} = error as {stderr?: string; code?: unknown};
		if (code === 'ENOENT' || stderr.trim() === '') throw error;
		throw new Error(stderr.trim().split('\n').at(-1), {cause: error});
	}
};

/** Domains that hold all these hosts: a domain of the mesh where one does, else the host itself. */
export function routingDomains(meshDomains: readonly string[], hosts: Iterable<string>): string[] {
	const domains = new Set(meshDomains);
	for (const host of hosts) {
		const bare = host.replace(/^\*\./, '').replace(/\.$/, '');
		if (!meshDomains.some(domain => bare === domain || bare.endsWith(`.${domain}`))) domains.add(bare);
	}
	return [...domains];
}
