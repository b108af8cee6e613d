import type {Backend, BackendName} from './backend.ts';
import type {Run} from './programs.ts';

export function iptablesBackend(name: Exclude<BackendName, 'nft'>, run: Run): Backend {
	void run;
	throw new Error(name);
}
