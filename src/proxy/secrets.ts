import {createHash, createPrivateKey, X509Certificate} from 'node:crypto';
import {readFile} from 'node:fs/promises';
import {AgentError, reasonOf} from '../errors.ts';
import type {Logger} from '../log.ts';
import {FieldWriter} from '../proto/wire.ts';
import {type FileWatch, watchFiles} from './file-watch.ts';
import type {SecretSource} from './types.ts';

/** One Envoy Secret, encoded. */
export interface EncodedSecret {
	/** Hash of the content, so the same material has the same version in the next agent. */
	readonly version: string;
	/** `envoy.extensions.transport_sockets.tls.v3.Secret`; holds a private key. */
	readonly bytes: Buffer;
}

export interface SecretsDeps {
	readonly source: SecretSource;
	readonly log: Logger;
	/** Where the operating system keeps its roots; the first that exists is `file-root:system`. */
	readonly systemRootPaths?: readonly string[];
}

/** Debian and Ubuntu; RHEL and Fedora; SUSE; Alpine. */
const defaultSystemRootPaths = [
	'/etc/ssl/certs/ca-certificates.crt',
	'/etc/pki/tls/certs/ca-bundle.crt',
	'/etc/ssl/ca-bundle.pem',
	'/etc/ssl/cert.pem',
];

type FileSecret =
	| {readonly kind: 'cert'; readonly paths: readonly [chain: string, key: string]}
	| {readonly kind: 'root'; readonly paths: readonly string[]};

/**
 * Secrets by the names istiod's configuration uses: `default` and `ROOTCA` from the workload's identity,
 * `file-cert:CHAIN~KEY`, `file-root:PATH` and `file-root:system` from disk. Files are watched for as long as somebody
 * wants them; a pair that does not fit together (half way through being replaced) is not handed out.
 */
export class Secrets {
	readonly #deps: SecretsDeps;
	readonly #identity = new Map<string, EncodedSecret>();
	readonly #files = new Map<string, {users: number; current: EncodedSecret | undefined; watch: FileWatch}>();
	readonly #listeners = new Set<() => void>();
	readonly #unknown = new Set<string>();
	readonly #unsubscribe: () => void;

	constructor(deps: SecretsDeps) {
		this.#deps = deps;
		this.#encodeIdentity();
		this.#unsubscribe = deps.source.onChange(() => {
			this.#encodeIdentity();
			this.#announce();
		});
	}

	/** Undefined while it is not available; `onChange` tells when that ends. */
	get(name: string): EncodedSecret | undefined {
		return this.#identity.get(name) ?? this.#files.get(name)?.current;
	}

	onChange(listener: () => void): () => void {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	/** Says that somebody wants this name. Returns how to say the opposite. */
	want(name: string): () => void {
		if (name === 'default' || name === 'ROOTCA') return () => {};
		const file = parseFileSecret(name, this.#deps.systemRootPaths ?? defaultSystemRootPaths);
		if (file === undefined) {
			if (!this.#unknown.has(name)) {
				this.#unknown.add(name);
				this.#deps.log.warn(
					{name},
					'envoy asks for a secret the agent does not know; whatever needs it will not start',
				);
			}
			return () => {};
		}
		const entry = this.#files.get(name) ?? this.#open(name, file);
		entry.users++;
		let isReleased = false;
		return () => {
			if (isReleased) return;
			isReleased = true;
			if (--entry.users > 0) return;
			entry.watch.close();
			this.#files.delete(name);
		};
	}

	close(): void {
		this.#unsubscribe();
		for (const {watch} of this.#files.values()) watch.close();
		this.#files.clear();
		this.#listeners.clear();
	}

	#open(name: string, file: FileSecret) {
		const entry = {users: 0, current: undefined as EncodedSecret | undefined, watch: {close: () => {}} as FileWatch};
		let lastFailure = '';
		const reload = async () => {
			try {
				const next = await loadFileSecret(name, file);
				lastFailure = '';
				if (next.version === entry.current?.version) return;
				entry.current = next;
				this.#announce();
			} catch (err) {
				// The old material goes on being served: what is on disk may be half of a replacement.
				if (reasonOf(err) !== lastFailure) this.#deps.log.warn({err, name}, 'secret on disk not usable');
				lastFailure = reasonOf(err);
			}
		};
		this.#files.set(name, entry);
		entry.watch = watchFiles(file.paths, reload);
		return entry;
	}

	#encodeIdentity(): void {
		const material = this.#deps.source.current();
		if (material === undefined) return;
		this.#identity.set('default', encodeCertificate('default', material.chainPem, material.keyPem.reveal()));
		this.#identity.set('ROOTCA', encodeRoots('ROOTCA', material.trustBundlePem));
	}

	#announce(): void {
		for (const listener of [...this.#listeners]) listener();
	}
}

function parseFileSecret(name: string, systemRootPaths: readonly string[]): FileSecret | undefined {
	if (name === 'file-root:system') return {kind: 'root', paths: systemRootPaths};
	if (name.startsWith('file-root:') && name.length > 'file-root:'.length) {
		return {kind: 'root', paths: [name.slice('file-root:'.length)]};
	}
	if (!name.startsWith('file-cert:')) return undefined;
	const [chain, key, ...more] = name.slice('file-cert:'.length).split('~');
	return chain && key && more.length === 0 ? {kind: 'cert', paths: [chain, key]} : undefined;
}

async function loadFileSecret(name: string, file: FileSecret): Promise<EncodedSecret> {
	if (file.kind === 'root') return encodeRoots(name, checkRoots(await readFirst(file.paths)));
	const [chain, key] = await Promise.all(file.paths.map(path => readFile(path, 'utf8')));
	if (!new X509Certificate(chain!).checkPrivateKey(createPrivateKey(key!))) {
		throw new AgentError(
			'identity.source_unusable',
			`load ${file.paths[0]}: its key is not the one in ${file.paths[1]}`,
		);
	}
	return encodeCertificate(name, chain!, key!);
}

async function readFirst(paths: readonly string[]): Promise<string> {
	const [path, ...others] = paths;
	return readFile(path!, 'utf8').catch((error: unknown) => {
		if (others.length > 0) return readFirst(others);
		throw error;
	});
}

/** An empty or torn file would cut every connection that is checked against it. */
function checkRoots(pem: string): string {
	new X509Certificate(pem);
	return pem;
}

/** Fields: Secret{name 1, tls_certificate 2}, TlsCertificate{certificate_chain 1, private_key 2}, DataSource{inline_bytes 2}. */
function encodeCertificate(name: string, chainPem: string, keyPem: string): EncodedSecret {
	return finish(
		new FieldWriter()
			.string(1, name)
			.message(2, certificate =>
				certificate
					.message(1, source => source.bytes(2, Buffer.from(chainPem)))
					.message(2, source => source.bytes(2, Buffer.from(keyPem))),
			),
	);
}

/** Fields: Secret{name 1, validation_context 4}, CertificateValidationContext{trusted_ca 1}. */
function encodeRoots(name: string, pem: string): EncodedSecret {
	return finish(
		new FieldWriter()
			.string(1, name)
			.message(4, context => context.message(1, source => source.bytes(2, Buffer.from(pem)))),
	);
}

function finish(writer: FieldWriter): EncodedSecret {
	const bytes = writer.finish();
	return {bytes, version: createHash('sha256').update(bytes).digest('hex').slice(0, 32)};
}
