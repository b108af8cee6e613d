import {existsSync} from 'node:fs';
import {request} from 'node:http';
import {AgentError} from '../errors.ts';

/** What `/server_info` says, as far as we look. */
export interface ServerInfo {
	/** `1.40.0` */
	readonly version: string;
	readonly state: 'LIVE' | 'DRAINING' | 'PRE_INITIALIZING' | 'INITIALIZING' | (string & {});
	/** Bootstrap this Envoy was started with. */
	readonly configPath: string;
	/** Whole seconds since then. */
	readonly uptimeSeconds: number;
	/** Between the word to drain and the end of its listeners. */
	readonly drainMs: number;
}

export interface AdminReply {
	readonly status: number;
	readonly body: string;
}

/** Envoy answers within milliseconds; a stuck main thread accepts and says nothing. */
const defaultTimeoutMs = 2000;
/** The Prometheus page of a large mesh takes most of a second. */
const pageTimeoutMs = 15_000;

/** Envoy's admin interface on its Unix socket. Every call rejects with `proxy.admin_failed` when there is no answer. */
export class AdminClient {
	readonly socketPath: string;

	constructor(socketPath: string) {
		this.socketPath = socketPath;
	}

	/** State name as `/ready` gives it, `LIVE` when traffic is served. */
	async ready(): Promise<string> {
		return (await this.#call('GET', '/ready')).body.trim();
	}

	async serverInfo(): Promise<ServerInfo> {
		const info = parseJson(await this.get('/server_info')) as {
			version?: string;
			state?: string;
			uptime_current_epoch?: string;
			command_line_options?: {config_path?: string; drain_time?: string};
		};
		return {
			version: info.version?.split('/')[1] ?? '',
			state: info.state ?? '',
			configPath: info.command_line_options?.config_path ?? '',
			uptimeSeconds: Number.parseInt(info.uptime_current_epoch ?? '', 10) || 0,
			drainMs: Number.parseFloat(info.command_line_options?.drain_time ?? '') * 1000 || 0,
		};
	}

	/**
	 * Counters and gauges in use whose name matches.
	 * @param filter - RE2, searched for in the full name
	 */
	async stats(filter: string): Promise<ReadonlyMap<string, number>> {
		const text = await this.get(`/stats?usedonly&filter=${encodeURIComponent(filter)}`);
		const values = new Map<string, number>();
		for (const line of text.split('\n')) {
			const at = line.lastIndexOf(': ');
			const value = Number(line.slice(at + 2));
			if (at > 0 && !Number.isNaN(value)) values.set(line.slice(0, at), value);
		}
		return values;
	}

	/** Statistics in use, in the Prometheus format. */
	prometheus(): Promise<string> {
		return this.get('/stats/prometheus?usedonly', pageTimeoutMs);
	}

	async certs(): Promise<unknown> {
		return parseJson(await this.get('/certs'));
	}

	/** @throws AgentError also when the answer is not 200 */
	async get(path: string, timeoutMs = defaultTimeoutMs): Promise<string> {
		return expectOk('GET', path, await this.#call('GET', path, timeoutMs));
	}

	/** @throws AgentError also when the answer is not 200 */
	async post(path: string, timeoutMs = defaultTimeoutMs): Promise<string> {
		return expectOk('POST', path, await this.#call('POST', path, timeoutMs));
	}

	#call(method: string, path: string, timeoutMs = defaultTimeoutMs): Promise<AdminReply> {
		return new Promise((resolve, reject) => {
			const fail = (cause: Error) =>
				reject(
					new AgentError('proxy.admin_failed', `${method} ${path} on ${this.socketPath}: ${cause.message}`, {cause}),
				);
			// While Envoy boots it is asked often, and a connection that cannot be made costs a millisecond.
			if (!existsSync(this.socketPath)) {
				fail(Object.assign(new Error(`there is no ${this.socketPath}`), {code: 'ENOENT'}));
				return;
			}
			// No keep-alive: an idle connection to an Envoy that is gone would fail the next call.
			const outgoing = request({socketPath: this.socketPath, method, path, agent: false}, incoming => {
				const chunks: Buffer[] = [];
				incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
				incoming.on('error', fail);
				incoming.on('end', () => resolve({status: incoming.statusCode ?? 0, body: Buffer.concat(chunks).toString()}));
			});
			const timer = setTimeout(() => outgoing.destroy(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
			outgoing.on('close', () => clearTimeout(timer));
			outgoing.on('error', fail);
			outgoing.end();
		});
	}
}

function expectOk(method: string, path: string, {status, body}: AdminReply): string {
	if (status === 200) return body;
	throw new AgentError(
		'proxy.admin_failed',
		`${method} ${path}: envoy answered ${status}: ${body.trim().slice(0, 200)}`,
	);
}

function parseJson(text: string): unknown {
	try {
		return JSON.parse(text);
	} catch (cause) {
		throw new AgentError('proxy.admin_failed', `read envoy's answer: not JSON: ${text.slice(0, 80)}`, {cause});
	}
}
