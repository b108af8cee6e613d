import {type IncomingMessage, request as requestHttp} from 'node:http';
import {request as requestHttps} from 'node:https';
import {connect as connectTls} from 'node:tls';
import {version} from '../version.ts';
import {dial} from './dial.ts';
import {ProbeFailure} from './failure.ts';

export interface HttpTarget {
	readonly scheme: 'http' | 'https';
	readonly host: string;
	readonly port: number;
	readonly path: string;
	readonly headers: readonly {readonly name: string; readonly value: string}[];
}

/** As kubelet and Istio. */
const mostRedirects = 10;
/** A page is read this far, so that the application sees no broken connection; nothing is made of it. */
const mostBodyBytes = 10 * 1024;

/**
 * GET; 200 to 399 is healthy. A redirect to the same host is followed, one to another host counts as an answer, both
 * as in Kubernetes. Certificates are not checked: the application's own are rarely made for this.
 */
export async function checkHttp(target: HttpTarget, signal: AbortSignal): Promise<void> {
	let at = target;
	for (let redirects = 0; ; redirects++) {
		const {status, location} = await ask(at, signal);
		const next = status >= 300 && status < 400 && location !== undefined ? follow(at, location) : undefined;
		if (next === undefined) {
			if (status >= 200 && status < 400) return;
			throw new ProbeFailure(`HTTP status ${status}`);
		}
		if (redirects >= mostRedirects) throw new ProbeFailure(`redirected more than ${mostRedirects} times`);
		at = next;
	}
}

/** Where a redirect on the same host leads; undefined for another host, and for what is no URL of ours. */
function follow(from: HttpTarget, location: string): HttpTarget | undefined {
	const base = `${from.scheme}://${bracketed(from.host)}:${from.port}${from.path}`;
	const url = URL.canParse(location, base) ? new URL(location, base) : undefined;
	if (!url || !['http:', 'https:'].includes(url.protocol)) return undefined;
	if (url.hostname !== new URL(base).hostname) return undefined;
	const scheme = url.protocol === 'https:' ? 'https' : 'http';
	const port = url.port === '' ? (scheme === 'https' ? 443 : 80) : Number(url.port);
	return {...from, scheme, port, path: `${url.pathname}${url.search}`};
}

async function ask(
	{scheme, host, port, path, headers}: HttpTarget,
	signal: AbortSignal,
): Promise<{status: number; location: string | undefined}> {
	const raw = await dial(host, port, signal);
	const names = new Set(headers.map(({name}) => name.toLowerCase()));
	const all: [string, string][] = [
		...(names.has('host') ? [] : ([['host', `${bracketed(host)}:${port}`]] as [string, string][])),
		...(names.has('user-agent') ? [] : ([['user-agent', `onramp-probe/${version}`]] as [string, string][])),
		...(names.has('accept') ? [] : ([['accept', '*/*']] as [string, string][])),
		['connection', 'close'],
		...headers.map(({name, value}) => [name, value] as [string, string]),
	];
	const options = {method: 'GET', path, headers: all.flat(), signal};
	const servername = /^[\d.]+$|:/.test(host) ? '' : host;
	try {
		const response = await new Promise<IncomingMessage>((resolve, reject) => {
			const request =
				scheme === 'https'
					? requestHttps({
							...options,
							createConnection: () => connectTls({socket: raw, servername, rejectUnauthorized: false}),
						})
					: requestHttp({...options, createConnection: () => raw});
			request.once('response', resolve).on('error', reject).end();
		});
		await readSome(response);
		return {status: response.statusCode ?? 0, location: response.headers.location};
	} finally {
		raw.destroy();
	}
}

/** The status has been heard; what goes wrong from here on is not the probe's concern, but time is. */
async function readSome(response: IncomingMessage): Promise<void> {
	let length = 0;
	for await (const chunk of response as AsyncIterable<Buffer>) {
		length += chunk.length;
		if (length > mostBodyBytes) return;
	}
}

const bracketed = (host: string): string => (host.includes(':') ? `[${host}]` : host);
