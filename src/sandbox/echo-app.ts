import {createServer} from 'node:http';
import type {AddressInfo} from 'node:net';
import {never, type Running} from '../lifecycle/index.ts';

/** What the echo application saw of one request. */
export interface Echo {
	readonly app: string;
	readonly path: string;
	/** From Envoy's `x-forwarded-client-cert`: who called, and as whom they were received. Empty over plaintext. */
	readonly callerId: string;
	readonly ownId: string;
	/** Hash of the caller's certificate; changes when it rotates. */
	readonly callerHash: string;
}

export interface EchoApp extends Running {
	readonly port: number;
}

/** How long a request for `/slow` takes: long enough that a burst of them needs several connections. */
const slowMs = 100;
/** Longer than Envoy keeps an idle connection (5 min): with Node's 5 s, a request may meet the end of the connection it is sent on. */
const keepAliveMs = 600_000;

/** A plain HTTP application, on 127.0.0.1 unless told otherwise, that answers with what it saw. It knows nothing of meshes. */
export async function startEchoApp(
	name: string,
	{host = '127.0.0.1', port = 0}: {readonly host?: string; readonly port?: number} = {},
): Promise<EchoApp> {
	const server = createServer((request, response) => {
		const certificate = String(request.headers['x-forwarded-client-cert'] ?? '');
		const echo: Echo = {
			app: name,
			path: request.url ?? '',
			callerId: /URI=([^;,]+)/.exec(certificate)?.[1] ?? '',
			ownId: /By=([^;,]+)/.exec(certificate)?.[1] ?? '',
			callerHash: /Hash=([^;,]+)/.exec(certificate)?.[1] ?? '',
		};
		response.writeHead(200, {'content-type': 'application/json'});
		const answer = () => response.end(JSON.stringify(echo));
		if (echo.path.startsWith('/slow')) setTimeout(answer, slowMs);
		else answer();
	});
	server.keepAliveTimeout = keepAliveMs;
	await new Promise<void>((resolve, reject) => {
		server.once('error', reject);
		server.listen(port, host, resolve);
	});
	return {
		port: (server.address() as AddressInfo).port,
		finished: never,
		stop: () =>
			new Promise(resolve => {
				server.close(() => resolve());
				server.closeAllConnections();
			}),
	};
}
