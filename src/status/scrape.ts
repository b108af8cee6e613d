import {request as httpRequest, type IncomingMessage} from 'node:http';
import {systemCode} from '../errors.ts';

/** How one source is asked. */
export interface ScrapeRequest {
	/** Accept, User-Agent, X-Prometheus-Scrape-Timeout-Seconds; nothing else of the scraper's is passed on. */
	readonly headers: Readonly<Record<string, string>>;
	/** The scraper's query with its `?`, or ''. */
	readonly query: string;
	readonly signal: AbortSignal;
}

export interface Scrape {
	readonly body: Buffer;
	readonly contentType: string;
}

/** Asks one source for its metrics; rejects for anything but a complete answer 200. */
export type ScrapeSource = (request: ScrapeRequest) => Promise<Scrape>;

/** A source on a Unix socket or on a port of this machine. */
export type ScrapeTarget = ({readonly socketPath: string} | {readonly port: number}) & {readonly path: string};

/**
 * @param maxBytes - a longer answer is refused, so that no source can fill the agent's memory
 */
export function scrapeOver(target: ScrapeTarget, maxBytes: number): ScrapeSource {
	return async ({headers, query, signal}) => {
		const path = `/${target.path.replace(/^\/+/, '')}${query}`;
		const ask = (where: {socketPath: string} | {host: string; port: number}) =>
			fetchBody({...where, path, headers, signal}, maxBytes);
		if ('socketPath' in target) return ask({socketPath: target.socketPath});
		try {
			// Addresses, not `localhost`: no name look-up, and 127.0.0.1 is never captured.
			return await ask({host: '127.0.0.1', port: target.port});
		} catch (error) {
			if (systemCode(error) !== 'ECONNREFUSED') throw error;
			return ask({host: '::1', port: target.port});
		}
	};
}

interface FetchOptions {
	readonly path: string;
	readonly headers: Readonly<Record<string, string>>;
	readonly signal: AbortSignal;
}

function fetchBody(
	options: FetchOptions & ({socketPath: string} | {host: string; port: number}),
	maxBytes: number,
): Promise<Scrape> {
	return new Promise((resolve, reject) => {
		const request = httpRequest({...options, method: 'GET', agent: false}, response => {
			readBody(response, maxBytes).then(body => {
				if (response.statusCode === 200) resolve({body, contentType: response.headers['content-type'] ?? ''});
				else reject(new Error(`answered with HTTP status ${response.statusCode}`));
			}, reject);
		});
		request.on('error', reject);
		request.end();
	});
}

async function readBody(response: IncomingMessage, maxBytes: number): Promise<Buffer> {
	const chunks: Buffer[] = [];
	let length = 0;
	for await (const chunk of response as AsyncIterable<Buffer>) {
		length += chunk.length;
		// Leaving the loop destroys the response, and with it the connection.
		if (length > maxBytes) throw new Error(`answer is longer than ${maxBytes} bytes`);
		chunks.push(chunk);
	}
	return Buffer.concat(chunks, length);
}
