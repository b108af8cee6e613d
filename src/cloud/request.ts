import {request} from 'node:http';

export interface MetadataRequest {
	readonly path: string;
	readonly method?: 'GET' | 'PUT';
	readonly headers: Readonly<Record<string, string>>;
	/** Of the answer; without it somebody else answers there. */
	readonly expected?: readonly [name: string, value: string];
}

/** @throws Error with what was asked and why it failed */
export type AskMetadata = (request: MetadataRequest) => Promise<string>;

/** On the machine's own host; an answer takes a millisecond. */
const timeoutMs = 1000;
/** Azure's holds up to 64 KiB of user data, in base64. */
const maxBytes = 128 * 1024;

/** One request to the metadata service of the cloud: no proxy, no redirect, no name that is looked up. */
export const askAt =
	(endpoint: string, signal: AbortSignal): AskMetadata =>
	({path, method = 'GET', headers, expected}) =>
		new Promise((resolve, reject) => {
			const limit = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
			const fail = (error: Error) =>
				reject(
					new Error(
						`${method} ${endpoint}${path}: ${limit.aborted ? `no answer within ${timeoutMs / 1000} s` : error.message}`,
					),
				);
			const length = method === 'PUT' ? {'content-length': '0'} : {};
			const outgoing = request(`${endpoint}${path}`, {
				method,
				agent: false,
				signal: limit,
				headers: {...headers, ...length},
			});
			outgoing.on('error', fail);
			outgoing.on('response', incoming => {
				const chunks: Buffer[] = [];
				let size = 0;
				incoming.on('error', fail);
				incoming.on('data', (chunk: Buffer) => {
					size += chunk.length;
					if (size > maxBytes) incoming.destroy(new Error(`the answer is larger than ${maxBytes} bytes`));
					else chunks.push(chunk);
				});
				incoming.on('end', () => {
					if (incoming.statusCode !== 200) fail(new Error(`HTTP status ${incoming.statusCode}`));
					else if (expected && incoming.headers[expected[0]] !== expected[1])
						fail(new Error('what answers there is not the metadata service'));
					else resolve(Buffer.concat(chunks).toString('utf8'));
				});
			});
			outgoing.end();
		});
